"""Listening sockets: the server's own on the loopback address, and those that ``byzerllm serve`` opens to others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from byzerllm.errors import Conflict, InvalidInput
from byzerllm.gateway.access import Access, Keys, is_loopback
from byzerllm.gateway.events import Emit
from byzerllm.gateway.protocol import BoundedProtocol
from byzerllm.gateway.requests import Cors, ListenerRequest

BACKLOG = 4096  # connections that wait to be accepted
KEEP_ALIVE = 75  # seconds an idle client connection is kept


@dataclass(frozen=True)
class Listener:
    """What the gateway needs to know of the socket that a request came through."""

    access: Access
    admin: bool  # the admin API is here
    served_model: str | None = None  # answers every request, whatever model it names
    cors: Cors | None = None
    url: str = ""


class HttpServer(uvicorn.Server):
    """uvicorn's server beside others in one loop: signals are not its affair. ``listening`` is set once it accepts."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: Any, *, drain_timeout: float, keyfile: str = "", certfile: str = "") -> HttpServer:
    """A server for one listener; ``serve(sockets=[...])`` runs it."""
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        loop="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(drain_timeout)),
        ssl_keyfile=keyfile or None,
        ssl_certfile=certfile or None,
    )
    config.load()
    return HttpServer(config)


class Listeners:
    """The listeners that were opened beside the server's own. Each lives as long as the request that opened it."""

    def __init__(self, keys: Keys, app_for: Callable[[Listener], Any], drain_timeout: float) -> None:
        self._keys = keys
        self._app_for = app_for
        self._drain_timeout = drain_timeout

    async def serve(self, request: ListenerRequest, emit: Emit) -> None:
        """Listen until cancelled.

        Raises:
            InvalidInput: a bind beyond loopback without a key, an address or certificate that cannot be used.
            Conflict: the port is taken.
        """
        _check(request)
        bound = await _bind(request.host, request.port)
        scheme = "https" if request.ssl_certfile else "http"
        url = f"{scheme}://{_shown_host(request.host)}:{bound.getsockname()[1]}"
        listener = Listener(
            access=Access(self._keys),
            admin=False,
            served_model=request.served_model_name or None,
            cors=request if request.api_key or self._keys.required else None,
            url=url,
        )
        server = http_server(
            self._app_for(listener),
            drain_timeout=self._drain_timeout,
            keyfile=request.ssl_keyfile,
            certfile=request.ssl_certfile,
        )
        if request.api_key:
            self._keys.add(request.api_key)
        running = asyncio.ensure_future(server.serve(sockets=[bound]))
        emit({"event": "listening", "url": url})
        try:
            await asyncio.shield(running)
        finally:
            server.should_exit = True
            try:
                await asyncio.wait((running,))
            finally:  # not before: without a key the listener would answer anyone while it closes
                if request.api_key:
                    self._keys.remove(request.api_key)


def _check(request: ListenerRequest) -> None:
    if not is_loopback(request.host or "127.0.0.1") and not request.api_key:  # another's key may be gone any moment
        raise InvalidInput(
            f"A bind to {request.host} opens the API to other machines and needs a key.",
            hint="Add --api_key KEY (env:NAME and file:PATH work), or use --host 127.0.0.1.",
            param="api_key",
        )
    if bool(request.ssl_keyfile) != bool(request.ssl_certfile):
        raise InvalidInput("--ssl_keyfile and --ssl_certfile belong together.", param="ssl_keyfile")
    if request.ssl_certfile:
        for flag, path in (("ssl_keyfile", request.ssl_keyfile), ("ssl_certfile", request.ssl_certfile)):
            if not Path(path).is_file():
                raise InvalidInput(f"--{flag} {path}: there is no such file.", param=flag)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                request.ssl_certfile, request.ssl_keyfile, password=""
            )
        except (ssl.SSLError, OSError) as error:
            raise InvalidInput(f"--ssl_certfile {request.ssl_certfile}: {error}.", param="ssl_certfile") from None


async def _bind(host: str, port: int) -> socket.socket:
    """A socket that listens already: who is told of the address can connect to it."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]") or "127.0.0.1", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, OverflowError) as error:
        raise InvalidInput(f"--host {host} --port {port} is no address: {error}.", param="host") from None
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise Conflict(
            f"{host}:{port} cannot be bound: {error.strerror}.", hint="Choose another --port.", param="port"
        ) from None
    bound.setblocking(False)
    return bound


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host or "127.0.0.1"
