"""The server process: puts the parts together, runs until it is told to stop, and takes them apart in order.

Started by the supervisor, which holds the listening socket (``BYZERLLM_LISTEN_FD``) so that it outlives a crash.
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
from typing import Any

import uvloop

from byzerllm import __version__
from byzerllm.control.controller import Controller
from byzerllm.control.secrets import Secrets
from byzerllm.control.store import Store
from byzerllm.errors import ByzerError, InternalError
from byzerllm.gateway.access import Access, Keys
from byzerllm.gateway.admin import Admin
from byzerllm.gateway.app import Gateway, Services, services
from byzerllm.gateway.inference import Inference
from byzerllm.gateway.listeners import Listener, Listeners, http_server
from byzerllm.providers import mock
from byzerllm.providers.mock_log import ConversationLog
from byzerllm.relay.pool import Pool
from byzerllm.routing.table import Table
from byzerllm.runtime.embedded import EmbeddedRuntime
from byzerllm.settings import Settings

log = logging.getLogger("byzerllm.server")


class Server:
    """Everything of one server process."""

    def __init__(self, settings: Settings, listen: socket.socket, secrets_fd: int | None, supervisor_pid: int) -> None:
        self._settings = settings
        self._listen = listen
        self._supervisor_pid = supervisor_pid
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
        runtime = EmbeddedRuntime(settings.logs)
        self._controller = Controller(
            table=self._table,
            pool=self._pool,
            store=self._store,
            runtime=runtime,
            secrets=Secrets(secrets_fd),
            mock_url=self._mock_url,
            probe_interval=settings.probe_interval,
        )
        listeners = Listeners(self._keys, lambda listener: Gateway(self._services, listener), settings.drain_timeout)
        self._admin = Admin(
            self._controller, runtime, listeners, info=self._info, stop=self._stopping.set, now=self._loop.time
        )
        inference = Inference(self._table, self._pool, settings.max_body)
        self._services: Services = services(self._table, inference, self._admin)

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or a request to stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopping.set)
        await self._store.open()
        await self._controller.restore()
        own = Listener(access=Access(self._keys), admin=True, url=self._url)
        http = http_server(Gateway(self._services, own), drain_timeout=self._settings.drain_timeout)
        serving = asyncio.ensure_future(http.serve(sockets=[self._listen]))
        await http.listening.wait()
        self._write_server_file()
        log.info("byzerllm %s answers at %s (pid %d)", __version__, self._url, os.getpid())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping")
        stopping.cancel()
        self._settings.server_file.unlink(missing_ok=True)
        self._admin.end_operations()
        http.should_exit = True  # no new connections; running requests have the drain timeout to end
        await serving
        await self._controller.close()
        if self._mock is not None:
            self._mock.close()
        self._pool.close()
        await self._store.close()
        log.info("stopped")

    @property
    def _url(self) -> str:
        host, port = self._listen.getsockname()[:2]
        return f"http://{host}:{port}"

    async def _mock_url(self) -> str:
        if self._mock is None:
            self._mock = await mock.start(mock=mock.Mock(log=self._conversations))
        host, port = self._mock.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}/{self._conversations.secret}/v1"

    def _info(self) -> dict[str, Any]:
        return {
            "url": self._url,
            "pid": os.getpid(),
            "supervisor_pid": self._supervisor_pid,
            "runtime": "embedded",
            "version": __version__,
            "home": str(self._settings.home),
            "started_at": self._started_at,
        }

    def _write_server_file(self) -> None:
        path = self._settings.server_file
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({**self._info(), "token": self._token}, file, indent=2)
        temporary.replace(path)


def _known_token(settings: Settings) -> str | None:
    """The token that a server that crashed has told its clients: they go on without looking it up again."""
    try:
        token = json.loads(settings.server_file.read_text("utf-8")).get("token")
    except (OSError, ValueError, AttributeError):
        return None
    return token if isinstance(token, str) and len(token) >= 32 else None


async def _main(settings: Settings) -> None:
    number = os.environ.pop("BYZERLLM_LISTEN_FD", None)
    if number is None:
        raise InternalError("The server is started by its supervisor.", hint="Use `byzerllm server start`.")
    secrets_fd = os.environ.pop("BYZERLLM_SECRETS_FD", None)
    supervisor_pid = int(os.environ.pop("BYZERLLM_SUPERVISOR_PID", "0"))
    listen = socket.socket(fileno=int(number))
    listen.setblocking(False)
    await Server(settings, listen, int(secrets_fd) if secrets_fd else None, supervisor_pid).run()


def main() -> int:
    """Entry point of ``python -m byzerllm.gateway.server``; returns the exit code."""
    os.umask(0o077)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        settings = Settings.read()
        logging.getLogger().setLevel(settings.log_level)
        uvloop.run(_main(settings))
    except ByzerError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
