"""``byzerllm serve``: open the OpenAI API to others, for as long as the command runs."""

from __future__ import annotations

import ipaddress
import os
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzerllm.cli.flags import SECRET, SWITCH, WHOLE, WORDS, Flag
from byzerllm.client.admin import AdminClient
from byzerllm.client.launch import ensure_server, running_server
from byzerllm.client.locate import is_this_machine
from byzerllm.client.server_file import ServerInfo, process_exists
from byzerllm.errors import ByzerError, InvalidInput, ServerUnavailable
from byzerllm.spec import resolve

if TYPE_CHECKING:
    import argparse

    from byzerllm.cli.console import Console
    from byzerllm.settings import Settings

_LOOPBACK = "127.0.0.1"

# Flags of older scripts that mean nothing any more.
_WITHOUT_EFFECT = (
    Flag("uvicorn_log_level", default="info"),
    Flag("prompt_template"),
    Flag("response_role", default="assistant"),
    Flag("template", default="auto"),
    Flag("client", default="simple"),
)
FLAGS = (
    Flag("host", default=_LOOPBACK),
    Flag("port", WHOLE, default=8000),
    Flag("api_key", SECRET),
    Flag("ssl_keyfile"),
    Flag("ssl_certfile"),
    Flag("served_model_name"),
    Flag("allow_credentials", SWITCH, False),
    Flag("allowed_origins", WORDS, default=["*"]),
    Flag("allowed_methods", WORDS, default=["*"]),
    Flag("allowed_headers", WORDS, default=["*"]),
    *_WITHOUT_EFFECT,
)

RETURN_LIMIT = 60.0  # for a crashed server to be back


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> int:
    listener = _listener(arguments, settings)
    for flag in _WITHOUT_EFFECT:
        if getattr(arguments, flag.name) != flag.default:
            console.note(f"--{flag.name} has no effect any more.")
    info = ensure_server(settings, console.progress)
    if info.ray_address and not is_this_machine(info.address[0]):
        console.note(f"It listens on the cluster's head node, {info.address[0]}.")
    try:
        while True:
            _listen(AdminClient(info), listener, console)
            console.note("The server went away; waiting for it to come back.")
            info = _wait_for_return(settings, info)
    except KeyboardInterrupt:
        console.note("Closed.")
    return 0


def _listen(client: AdminClient, listener: dict[str, Any], console: Console) -> None:
    """Keep the listener open until the connection to the server ends."""
    listening = False
    try:
        with closing(client.events("POST", "/admin/listeners", listener, timeout=None)) as events:
            for event in events:
                if event["event"] == "listening":
                    listening = True
                    console.data(event["url"])
    except ByzerError:
        if not listening:
            raise


def _wait_for_return(settings: Settings, gone: ServerInfo) -> ServerInfo:
    """The restarted server.

    Raises:
        ServerUnavailable: it was stopped, or does not come back.
    """
    deadline = time.monotonic() + RETURN_LIMIT
    while time.monotonic() < deadline:
        info = running_server(settings)
        if info is not None:
            return info
        if not (gone.supervisor_pid and process_exists(gone.supervisor_pid)):  # a server on Ray has none
            raise ServerUnavailable("The server was stopped.", hint="Run byzerllm serve again to start it.")
        time.sleep(0.1)
    raise ServerUnavailable(
        f"The server did not come back within {RETURN_LIMIT:.0f} s.", hint=f"Its log is {gone.home}/logs/server.log."
    )


def _listener(arguments: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """What to open, checked before a server is started for it."""
    host = arguments.host or _LOOPBACK
    key = resolve("--api_key", arguments.api_key) or settings.api_key or ""
    if not key and not _is_loopback(host):
        raise InvalidInput(
            f"--host {host} is open to other machines, and no key is set.",
            hint="Add --api_key KEY (or env:NAME, file:PATH), or leave --host out.",
            param="api_key",
        )
    if not 0 <= arguments.port <= 65535:
        raise InvalidInput(f"--port {arguments.port} must be from 0 to 65535.", param="port")
    if bool(arguments.ssl_keyfile) != bool(arguments.ssl_certfile):
        raise InvalidInput("--ssl_keyfile and --ssl_certfile must be given together.", param="ssl_keyfile")
    names = ("port", "served_model_name", "allow_credentials")
    lists = ("allowed_origins", "allowed_methods", "allowed_headers")
    return {
        **{name: getattr(arguments, name) for name in (*names, *lists)},
        "host": host,
        "api_key": key,
        "ssl_keyfile": _existing_file("ssl_keyfile", arguments.ssl_keyfile),
        "ssl_certfile": _existing_file("ssl_certfile", arguments.ssl_certfile),
    }


def _existing_file(flag: str, name: str) -> str:
    path = Path(name).expanduser()
    if name and not path.is_file():
        raise InvalidInput(f"--{flag} {name}: there is no such file.", param=flag)
    return os.path.abspath(path) if name else ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
