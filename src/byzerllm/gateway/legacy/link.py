"""From an instance's actor to the server, by HTTP. The server may move, restart or be away for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from byzerllm.errors import ByzerError, ServerUnavailable, UpstreamTimeout, UpstreamUnreachable
from byzerllm.relay.connection import Connection
from byzerllm.relay.pool import Pool
from byzerllm.relay.target import Target, header_lines, merged, parse_target, request_head, standard_headers
from byzerllm.spec import Timeouts
from byzerllm.wire.base import Outgoing
from byzerllm.wire.openai import parse_error

PATIENCE = 15.0  # seconds in which a server that restarts is back
_PAUSE = 0.2
_DAY = 86_400.0
_TIMEOUTS = Timeouts(connect=5.0, first_byte=_DAY, idle=_DAY, total=_DAY)  # the server has the instance's own
_ERROR_LIMIT = 64 * 1024


class _ServerFile(msgspec.Struct):
    url: str
    token: str


class _Server(msgspec.Struct, frozen=True):
    target: Target
    token: str


class Link:
    """Requests to the server whose ``server.json`` is in the folder ``home``."""

    def __init__(self, home: Path, patience: float = PATIENCE) -> None:
        self._file = home / "server.json"
        self._patience = patience
        self._pool = Pool()
        self._server: _Server | None = None

    @asynccontextmanager
    async def answer(self, method: str, request: Outgoing) -> AsyncIterator[Connection]:
        """A good answer, of which the body is still to be read. Leaving the block ends the request, answered or not.

        Raises:
            UpstreamError: the server answered with an error, or the answer broke off.
            ServerUnavailable: there is none, even after some patience.
        """
        connection = await self._exchange(method, request)
        try:
            if connection.status != 200:
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in connection.headers}
                raise parse_error(connection.status, headers, await connection.read_all(_ERROR_LIMIT))
            yield connection
        finally:
            self._pool.give_back(connection)

    async def body(self, method: str, request: Outgoing) -> bytes:
        """A good answer, whole. Raises as ``answer`` does."""
        parts: list[bytes] = []
        async with self.answer(method, request) as connection:
            while chunk := await connection.read():
                parts.append(chunk)
        return b"".join(parts)

    def close(self) -> None:
        """Close the connections that wait for use."""
        self._pool.close()

    async def _exchange(self, method: str, request: Outgoing) -> Connection:
        """The answer's head. What failed before the request was sent is tried again, with what the file says then."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while True:
            try:
                server = self._server or await self._look_up()
                connection = await self._pool.exchange(server.target, _bytes(server, method, request), _TIMEOUTS)
            except (ServerUnavailable, UpstreamUnreachable, UpstreamTimeout) as error:
                if not _unsent(error):
                    raise
                if loop.time() > deadline:
                    raise ServerUnavailable(f"The byzerllm server cannot be reached: {error.message}") from None
                self._server = None
                await asyncio.sleep(_PAUSE)
                continue
            if connection.status != 401 or not await self._is_outdated(server, connection):
                return connection

    async def _is_outdated(self, server: _Server, connection: Connection) -> bool:
        """Whether it was another server's token that was refused, and nobody's key; the answer is given back then."""
        outdated = False
        try:
            outdated = await self._look_up() != server
        except ServerUnavailable:
            self._server = server  # its answer stands
        except BaseException:
            connection.abort()
            raise
        if outdated:
            self._pool.give_back(connection)
        return outdated

    async def _look_up(self) -> _Server:
        self._server = await asyncio.to_thread(_read, self._file)
        return self._server


def _unsent(error: ByzerError) -> bool:
    return not isinstance(error, UpstreamTimeout) or error.details.get("timeout") == "connect"


def _read(file: Path) -> _Server:
    try:
        found = msgspec.json.decode(file.read_bytes(), type=_ServerFile)
    except (OSError, msgspec.DecodeError) as error:
        raise ServerUnavailable(f"{file} is not there or cannot be read: no server runs now.") from error
    return _Server(parse_target(found.url)[0], found.token)


def _bytes(server: _Server, method: str, request: Outgoing) -> bytes:
    length = {"Content-Length": str(len(request.body))} if request.body else {}
    authorization = {"Authorization": f"Bearer {server.token}"}
    headers = merged(standard_headers(server.target), request.headers, length, authorization)
    head = request_head(method, server.target, request.path, header_lines(headers))
    return head + b"\r\n" + request.body
