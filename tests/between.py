"""What may stand between the relay and a fake upstream: TLS with a self-made authority, and an HTTP proxy."""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import trustme

if TYPE_CHECKING:
    from tests.fakes import FakeUpstream


@dataclass(frozen=True)
class Authority:
    """A self-made authority and a certificate of it for localhost and 127.0.0.1."""

    ca: Path
    key: Path
    certificate: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """A new one, with its files in the folder."""
        made = trustme.CA()
        certificate = made.issue_cert("localhost", "127.0.0.1")
        found = cls(folder / "ca.pem", folder / "key.pem", folder / "certificate.pem")
        made.cert_pem.write_to_path(found.ca)
        certificate.private_key_pem.write_to_path(found.key)
        found.certificate.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        return found

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


class Between:
    """A server that stands between the relay and a fake upstream, in a thread of its own."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._joining: set[asyncio.Task[None]] = set()
        self.ends: set[End] = set()
        self.peers: list[str] = []  # addresses that connected
        self.port = 0

    def __enter__(self) -> Any:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await self._loop.create_server(lambda: End(self), "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._ended.wait()
        server.close()
        for end in list(self.ends):
            end.transport.abort()
        while self.ends:
            await asyncio.sleep(0.001)

    def accepted(self, end: End) -> None:
        """A connection was made."""
        self.peers.append(end.transport.get_extra_info("peername")[0])

    def received(self, end: End, head: str) -> None:
        """The head of a request came over a connection that has no other end yet."""
        raise NotImplementedError

    def join(self, end: End, port: int, first: bytes = b"") -> None:
        """Carry bytes to the port and back from now on, until either side ends."""
        end.joining = True

        async def connect() -> None:
            _, far = await self._loop.create_connection(lambda: End(self, end), "127.0.0.1", port)
            far.transport.write(first + bytes(end.kept))
            end.other = far

        task = self._loop.create_task(connect())
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)


class End(asyncio.Protocol):
    """One side of a connection that is carried on; ``other`` is the other one."""

    transport: asyncio.Transport

    def __init__(self, between: Between, other: End | None = None) -> None:
        self._between = between
        self.other = other
        self.joining = False  # there will be another end in a moment
        self.kept = bytearray()  # what came before there was another end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._between.ends.add(self)
        if self.other is None:
            self._between.accepted(self)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)
            return
        self.kept += data
        if self.joining:
            return
        head, end, rest = self.kept.partition(b"\r\n\r\n")
        if end:
            self.kept = rest
            self._between.received(self, head.decode())

    def connection_lost(self, exc: Exception | None) -> None:
        self._between.ends.discard(self)
        if self.other is not None:
            self.other.transport.close()


class Secured(Between):
    """TLS in front of an upstream."""

    def __init__(self, authority: Authority, upstream: FakeUpstream) -> None:
        super().__init__(authority.context())
        self._upstream = upstream

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def received(self, end: End, head: str) -> None:
        self.join(end, self._upstream.port, f"{head}\r\n\r\n".encode())


@dataclass
class Asked:
    """The head of a request as the proxy got it."""

    line: str
    headers: dict[str, str]


class Proxy(Between):
    """An HTTP proxy: CONNECT, and requests with a whole address. ``status`` other than 200 refuses both."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Asked] = []
        self.credentials = ""
        self.status = 200
        self.say = b""  # said instead of an answer, before the connection is closed

    @property
    def url(self) -> str:
        return f"http://{self.credentials}{'@' * bool(self.credentials)}127.0.0.1:{self.port}"

    def received(self, end: End, head: str) -> None:
        line, *rows = head.split("\r\n")
        asked = Asked(line, {k.lower(): v.strip() for k, _, v in (row.partition(":") for row in rows)})
        self.asked.append(asked)
        expected = f"Basic {base64.b64encode(self.credentials.encode()).decode()}"
        refused = 407 if self.credentials and asked.headers.get("proxy-authorization") != expected else self.status
        method, where, _ = line.split(" ")
        if self.say or refused != 200:
            end.transport.write(self.say or b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % refused)
            end.transport.close()
        elif method == "CONNECT":
            end.transport.write(b"HTTP/1.1 200 Connection established\r\nproxy-agent: fake\r\n\r\n")
            self.join(end, int(where.rpartition(":")[2]))
        else:
            parts = urlsplit(where)
            self.join(end, parts.port or 80, f"{head.replace(where, parts.path, 1)}\r\n\r\n".encode())
