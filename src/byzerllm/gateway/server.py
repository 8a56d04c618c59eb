"""A server: puts the parts together, runs until it is told to stop, and takes them apart in order.

``Ground`` is what differs with where it runs. On one machine (this module's ``main``) the supervisor starts it and has
the listening socket (``BYZERLLM_LISTEN_FD``), which so outlives a crash; ``ray_server.py`` is the other.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets as random_secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvloop

from byzerllm import __version__
from byzerllm.control.controller import Controller
from byzerllm.control.names import Names, NoNames
from byzerllm.control.secrets import FileMemory, Memory, Secrets
from byzerllm.control.store import Store
from byzerllm.engines.environments import Environments
from byzerllm.errors import ByzerError, InternalError
from byzerllm.gateway.access import Access, Keys
from byzerllm.gateway.admin import Admin
from byzerllm.gateway.app import Gateway, Services, services
from byzerllm.gateway.inference import Inference
from byzerllm.gateway.listeners import HttpServer, Listener, Listeners, http_server
from byzerllm.providers import mock
from byzerllm.providers.mock_log import ConversationLog
from byzerllm.relay.pool import Pool
from byzerllm.routing.table import Table
from byzerllm.runtime.base import Runtime
from byzerllm.runtime.embedded import EmbeddedRuntime
from byzerllm.settings import Settings

log = logging.getLogger("byzerllm.server")


@dataclass(frozen=True)
class Ground:
    """What a server stands on. ``local`` listens on the loopback address, ``shared`` where other machines reach it."""

    runtime: Runtime
    names: Names
    memory: Memory | None
    local: socket.socket
    shared: socket.socket | None = None
    supervisor_pid: int = 0
    ray_address: str = ""

    @property
    def url(self) -> str:
        """Where clients find the server."""
        host, port = (self.shared or self.local).getsockname()[:2]
        return f"http://{host}:{port}"


class Server:
    """Everything of one server process, made in the loop it is to run in."""

    def __init__(self, settings: Settings, ground: Ground) -> None:
        self._settings = settings
        self._ground = ground
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._started_at = time.time()
        self._token = _known_token(settings) or random_secrets.token_urlsafe(32)
        self._mock: asyncio.Server | None = None
        self._conversations = ConversationLog(settings.home)
        self._table = Table()
        self._pool = Pool()
        self._store = Store(settings.database)
        self._keys = Keys(self._token)
        if settings.api_key:
            self._keys.add(settings.api_key)
        self._controller = Controller(
            table=self._table,
            pool=self._pool,
            store=self._store,
            runtime=ground.runtime,
            engines=Environments(settings.engines),
            names=ground.names,
            secrets=Secrets(ground.memory),
            mock_url=self._mock_url,
            probe_interval=settings.probe_interval,
        )
        listeners = Listeners(self._keys, lambda listener: Gateway(self._services, listener), settings.drain_timeout)
        self._admin = Admin(
            self._controller, ground.runtime, listeners, info=self.info, stop=self._stopping.set, now=self._loop.time
        )
        inference = Inference(self._table, self._pool, settings.max_body)
        self._services: Services = services(self._table, inference, self._admin)

    def stop(self) -> None:
        """Begin the orderly end; ``run`` returns when it is done."""
        self._stopping.set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until ``stop``; ``ready`` is called once clients can come."""
        await self._store.open()
        await self._controller.restore()
        fronts = self._fronts()
        serving = [asyncio.ensure_future(http.serve(sockets=[bound])) for http, bound in fronts]
        await asyncio.gather(*(http.listening.wait() for http, _ in fronts))
        self._write_server_file()
        log.info("byzerllm %s answers at %s (pid %d)", __version__, self._ground.url, os.getpid())
        ready()
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((*serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping")
        stopping.cancel()
        self._settings.server_file.unlink(missing_ok=True)
        self._admin.end_operations()
        for http, _ in fronts:
            http.should_exit = True  # no new connections; running requests have the drain timeout to end
        await asyncio.gather(*serving)
        await self._controller.close()
        if self._mock is not None:
            self._mock.close()
        self._pool.close()
        await self._store.close()
        log.info("stopped")

    def _fronts(self) -> list[tuple[HttpServer, socket.socket]]:
        """An HTTP server for each of the sockets."""
        ground = self._ground
        fronts = []
        for bound, always in ((ground.local, False), (ground.shared, True)):
            if bound is not None:
                own = Listener(access=Access(self._keys, always=always), admin=True, url=ground.url)
                app = Gateway(self._services, own)
                fronts.append((http_server(app, drain_timeout=self._settings.drain_timeout), bound))
        return fronts

    async def _mock_url(self) -> str:
        if self._mock is None:
            self._mock = await mock.start(mock=mock.Mock(log=self._conversations))
        host, port = self._mock.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}/{self._conversations.secret}/v1"

    def describe(self) -> dict[str, Any]:
        """What ``server.json`` says: the server's facts and its token."""
        return {**self.info(), "token": self._token}

    def info(self) -> dict[str, Any]:
        """The server's own facts, without its token."""
        return {
            "url": self._ground.url,
            "pid": os.getpid(),
            "supervisor_pid": self._ground.supervisor_pid,
            "runtime": self._ground.runtime.name,
            "ray_address": self._ground.ray_address,
            "version": __version__,
            "home": str(self._settings.home),
            "started_at": self._started_at,
        }

    def _write_server_file(self) -> None:
        path = self._settings.server_file
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(self.describe(), file, indent=2)
        temporary.replace(path)


def recorded(settings: Settings) -> dict[str, Any]:
    """What a server of this home that crashed has told its clients: they go on with the same token and address."""
    try:
        told = json.loads(settings.server_file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    # The file may be a command's note of where another machine's server is.
    return told if isinstance(told, dict) and told.get("home") == str(settings.home) else {}


def _known_token(settings: Settings) -> str | None:
    token = recorded(settings).get("token")
    return token if isinstance(token, str) and len(token) >= 32 else None


async def _main(settings: Settings, ground: Ground) -> None:
    server = Server(settings, ground)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    await server.run(lambda: None)


def _embedded(settings: Settings) -> Ground:
    number = os.environ.pop("BYZERLLM_LISTEN_FD", None)
    if number is None:
        raise InternalError("The server is started by its supervisor.", hint="Use `byzerllm server start`.")
    secrets_fd = os.environ.pop("BYZERLLM_SECRETS_FD", None)
    listen = socket.socket(fileno=int(number))
    listen.setblocking(False)
    return Ground(
        runtime=EmbeddedRuntime(settings.logs),
        names=NoNames(),
        memory=FileMemory(int(secrets_fd)) if secrets_fd else None,
        local=listen,
        supervisor_pid=int(os.environ.pop("BYZERLLM_SUPERVISOR_PID", "0")),
    )


def log_to(handler: logging.Handler) -> None:
    """Write all logs there and nowhere else."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[handler], force=True
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def main() -> int:
    """Entry point of ``python -m byzerllm.gateway.server``; returns the exit code."""
    os.umask(0o077)
    log_to(logging.StreamHandler(sys.stderr))
    try:
        settings = Settings.read()
        logging.getLogger().setLevel(settings.log_level)
        uvloop.run(_main(settings, _embedded(settings)))
    except ByzerError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
