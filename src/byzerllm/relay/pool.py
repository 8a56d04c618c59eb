"""The pool of upstream connections: opens, proxies, secures and reuses them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from byzerllm.errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from byzerllm.relay.connection import Connection, Exchange
from byzerllm.relay.target import Target, proxy_authorization, tls_context
from byzerllm.spec import Timeouts

MAX_IDLE = 1024  # connections kept for one target
_PROXY_ANSWER_LIMIT = 16 * 1024


class Pool:
    """Connections by target, the most recently used first, so that the rest can grow old and be closed.

    ``close()`` ends those that wait for use; a running exchange is ended by whoever runs it.
    """

    def __init__(self) -> None:
        self._idle: dict[Target, list[Connection]] = {}
        self._loop = asyncio.get_running_loop()
        self.opened = 0

    async def exchange(self, target: Target, data: bytes, timeouts: Timeouts) -> Connection:
        """Send one request and wait for the head of its answer. The caller must ``give_back`` the connection.

        A reused connection that the upstream had just closed is replaced by a fresh one, once, since no byte of the
        request was answered on it.

        Raises:
            UpstreamError: unreachable, broken or too late. Nothing is left open then, nor when it is cancelled.
        """
        connection = self._take(target)
        while True:
            if connection is None:
                connection = await self._open(target, timeouts.connect)
            try:
                connection.send(data, timeouts)
                await connection.head()
            except UpstreamBroken:
                stale = connection.reused and not connection.received
                connection.abort()
                if not stale:
                    raise
                connection = None
            except BaseException:
                connection.abort()
                raise
            else:
                return connection

    def give_back(self, connection: Exchange) -> None:
        """End an exchange: the connection is kept if its answer was read to the end, and closed otherwise."""
        if not isinstance(connection, Connection) or not connection.reusable:
            connection.abort()
            return
        idle = self._idle.setdefault(connection.target, [])
        if len(idle) >= MAX_IDLE:
            connection.abort()
            return
        connection.release(self._forget)
        idle.append(connection)

    def close(self) -> None:
        idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.abort()

    @property
    def idle(self) -> int:
        return sum(len([c for c in idle if not c.closed]) for idle in self._idle.values())

    def _forget(self, connection: Connection) -> None:
        idle = self._idle.get(connection.target, [])
        if connection in idle:
            idle.remove(connection)
            if not idle:
                del self._idle[connection.target]

    def _take(self, target: Target) -> Connection | None:
        idle = self._idle.get(target)
        while idle:
            connection = idle.pop()
            if not connection.closed:
                return connection
        if idle is not None:
            del self._idle[target]
        return None

    async def _open(self, target: Target, timeout: float) -> Connection:
        # Not wait_for: before Python 3.12 it loses a cancel that comes in the very moment of the connection.
        opening = asyncio.ensure_future(self._connect(target))
        try:
            await asyncio.wait((opening,), timeout=timeout)
            if not opening.done():
                raise UpstreamTimeout(f"{target}: no connection within {timeout:g} s.", details={"timeout": "connect"})
        except BaseException:
            opening.cancel()
            opening.add_done_callback(_close_made)
            raise
        try:
            connection = opening.result()
        except (OSError, UnicodeError) as error:
            raise unreachable(target, error) from None
        self.opened += 1
        return connection

    async def _connect(self, target: Target) -> Connection:
        loop = self._loop
        host, port = target.connect_address
        local = (target.local_address, 0) if target.local_address else None
        if not target.proxy:
            context = await asyncio.to_thread(tls_context, target.ca_file) if target.tls else None
            _, connection = await loop.create_connection(
                lambda: Connection(target, loop), host, port, ssl=context, local_addr=local
            )
            return connection
        if not target.tls:  # the request line carries the whole address, see ``request_head``
            _, connection = await loop.create_connection(lambda: Connection(target, loop), host, port, local_addr=local)
            return connection
        return await self._tunnel(target, host, port, local)

    async def _tunnel(self, target: Target, host: str, port: int, local: tuple[str, int] | None) -> Connection:
        loop = self._loop
        context = await asyncio.to_thread(tls_context, target.ca_file)
        transport, handshake = await loop.create_connection(_ProxyHandshake, host, port, local_addr=local)
        try:
            where = f"[{target.host}]:{target.port}" if ":" in target.host else f"{target.host}:{target.port}"
            transport.write(
                f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n".encode() + proxy_authorization(target.proxy) + b"\r\n"
            )
            status = await handshake.answered
            if status != 200:
                raise UpstreamUnreachable(f"{target}: the proxy refused the connection with status {status}.")
            connection = Connection(target, loop)
            secured = await loop.start_tls(transport, connection, context, server_hostname=target.host)
            if secured is None:
                raise UpstreamUnreachable(f"{target}: the connection closed during the TLS handshake.")
            connection.connection_made(secured)
        except BaseException:
            transport.abort()
            raise
        return connection


class _ProxyHandshake(asyncio.Protocol):
    """Waits for a proxy's answer to CONNECT. ``answered`` gives its status."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self.answered.done():
            return
        if b"\r\n\r\n" in self._buffer:
            status = 0
            with contextlib.suppress(IndexError, ValueError):
                status = int(self._buffer.split(b" ", 2)[1])
            self.answered.set_result(status)
        elif len(self._buffer) > _PROXY_ANSWER_LIMIT:
            self.answered.set_result(0)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(ConnectionResetError("the proxy closed the connection"))


def _close_made(opening: asyncio.Future[Connection]) -> None:
    """Nobody waits for the connection any more; it may have been made all the same."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().abort()


def unreachable(target: Target, error: OSError | UnicodeError) -> UpstreamUnreachable:
    """What an error of the operating system, of TLS or of DNS means to whoever deployed the instance."""
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        return UpstreamUnreachable(
            f"{target}: the secure connection failed: {reason}.",
            hint="saas.ca_file=PATH adds the authority of a private certificate.",
        )
    if isinstance(error, socket.gaierror | UnicodeError):  # the latter: a name that DNS cannot have
        reason = getattr(error, "strerror", None) or str(error)
        return UpstreamUnreachable(f"{target}: the host name cannot be resolved ({reason}).")
    return UpstreamUnreachable(f"{target}: {_os_reason(error)}.")


def _os_reason(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused, nothing listens there"
    if error.errno is None and error.args:
        return str(error.args[0])
    return error.strerror or str(error)
