"""``byzerllm server start|stop|status``: the background server itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from byzerllm.cli.flags import Flag
from byzerllm.client.admin import AdminClient
from byzerllm.client.launch import ensure_server, is_left, running_server
from byzerllm.errors import ServerUnavailable

if TYPE_CHECKING:
    import argparse

    from byzerllm.cli.console import Console
    from byzerllm.settings import Settings

FLAGS = (Flag("action", choices=("start", "stop", "status"), positional=True),)

STOP_MARGIN = 30.0  # beyond the time that the server gives running requests


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> int:
    if arguments.action == "start":
        console.data(ensure_server(settings, console.progress).url)
    elif arguments.action == "stop":
        _stop(console, settings)
    else:
        _status(console, settings)
    return 0


def _stop(console: Console, settings: Settings) -> None:
    info = running_server(settings)
    if info is None:
        return console.note("No server is running.")
    AdminClient(info).call("POST", "/admin/server/stop")
    console.progress("Waiting for running requests and engines to end ...")
    deadline = time.monotonic() + settings.drain_timeout + STOP_MARGIN
    while is_left(info):
        if time.monotonic() > deadline:
            raise ServerUnavailable(
                f"The server (pid {info.pid}) was told to stop and still runs.",
                hint=f"Its log is {info.home}/logs/server.log.",
            )
        time.sleep(0.02)
    console.data("Server stopped")


def _status(console: Console, settings: Settings) -> None:
    info = running_server(settings)
    if info is None:
        raise ServerUnavailable("No server is running.", hint="byzerllm server start starts one.")
    state = AdminClient(info).get("/admin/server")
    if not console.out_is_terminal:
        return console.json({name: state[name] for name in ("url", "pid", "runtime", "version", "home")})
    age = max(0.0, time.time() - state["started_at"])
    cluster = settings.ray_address
    for name, value in (
        ("address", state["url"]),
        ("process", f"{state['pid']} (supervised by {'Ray' if cluster else state['supervisor_pid']})"),
        ("running for", f"{age:.0f} s"),
        ("runtime", f"{state['runtime']} {cluster}".rstrip()),
        ("version", state["version"]),
        ("home", state["home"]),
        ("instances", state["deployments"]),
    ):
        console.data(f"{name:12} {value}")
