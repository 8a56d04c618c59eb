"""A websocket server to stand for iFlytek Spark, on a real socket, in its own thread and loop.

    with FakeSpark() as spark:
        spark.script([frame, 0.1, frame])
        ... deploy on spark.url ...
        assert spark.handshakes[0].path.startswith("/v3.5/chat?")

Each connection takes the next script: frames are sent as they are, a number waits so many seconds, ``HANG`` sends
nothing more, ``RESET`` ends the connection without a goodbye. A handshake's signature is checked as iFlytek describes
it, with ``secret``. ``refuse`` is a status and a body for every handshake.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes import HANG, RESET, Fault
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from websockets.http11 import Request, Response

Script = Sequence[bytes | float | Fault]


class FakeSpark:
    """See the module's docstring."""

    def __init__(self, secret: str = "secret", ssl: Any = None) -> None:
        self.handshakes: list[Request] = []
        self.received: list[bytes] = []
        self.peers: list[str] = []
        self.gone: list[float] = []  # when clients went away before their script was over
        self.refuse: tuple[int, bytes] | None = None
        self.port = 0
        self._secret = secret
        self._ssl = ssl
        self._scripts: deque[Script] = deque()
        self._end: Callable[[], object] = lambda: None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"{'wss' if self._ssl else 'ws'}://127.0.0.1:{self.port}"

    def script(self, *scripts: Script) -> None:
        self._scripts.extend(scripts)

    def __enter__(self) -> FakeSpark:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="fake-spark")
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()
        assert self._thread is not None
        self._thread.join()

    async def _serve(self, started: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self._end = lambda: loop.call_soon_threadsafe(ended.set)
        server = await serve(
            self._answer, "127.0.0.1", 0, process_request=self._check, ssl=self._ssl, close_timeout=0.2
        )
        self.port = next(iter(server.sockets)).getsockname()[1]
        started.set()
        await ended.wait()
        for connection in list(server.connections):
            connection.transport.abort()
        server.close()
        await server.wait_closed()

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        self.handshakes.append(request)
        self.peers.append(connection.remote_address[0])
        if self.refuse is not None:
            status, body = self.refuse
            refused = connection.respond(HTTPStatus(status), body.decode())
            refused.headers["X-Request-Id"] = "r-1"
            return refused
        problem = self._problem(request)
        if problem:
            return connection.respond(HTTPStatus.UNAUTHORIZED, json.dumps({"message": problem}))
        return None

    def _problem(self, request: Request) -> str:
        parts = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        given = base64.b64decode(query["authorization"]).decode()
        fields = dict(pair.split("=", 1) for pair in given.split(", "))
        text = f"host: {query['host']}\ndate: {query['date']}\nGET {parts.path} HTTP/1.1".encode()
        expected = base64.b64encode(hmac.new(self._secret.encode(), text, hashlib.sha256).digest()).decode()
        if fields["signature"] != f'"{expected}"' or query["host"] != request.headers["Host"]:
            return "HMAC signature does not match"
        if abs(parsedate_to_datetime(query["date"]).timestamp() - time.time()) > 300:
            return "HMAC signature cannot be verified, a valid date or x-date header is required"
        return ""

    async def _answer(self, connection: ServerConnection) -> None:
        try:
            message = await connection.recv()
            assert isinstance(message, str), "the request is a text frame"
            self.received.append(message.encode())
            for step in self._scripts.popleft():
                await self._step(connection, step)
        except ConnectionClosed:
            self.gone.append(time.monotonic())

    async def _step(self, connection: ServerConnection, step: bytes | float | Fault) -> None:
        if step is HANG:
            await connection.wait_closed()
            self.gone.append(time.monotonic())
        elif step is RESET:
            connection.transport.abort()
        elif isinstance(step, bytes):
            await connection.send(step.decode())
        elif isinstance(step, float):
            await asyncio.sleep(step)
