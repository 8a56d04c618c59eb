"""A scriptable HTTP server to stand for a vendor, well-behaved or not. Real sockets, its own thread and loop.

    with FakeUpstream() as upstream:
        upstream.script(json_reply({"id": "1"}), json_reply({"error": {}}, 429), sse_reply("a", "b", gap=0.02))
        ... send requests to upstream.url ...
        assert upstream.requests[0].json()["model"] == "gpt"

Each request takes the next scripted reply; when the script is over, ``upstream.default`` answers. A reply's
body is a list of steps, done in order: bytes are sent as they are, a number waits so many seconds, a
``threading.Event`` waits until the test sets it, and HANG, CLOSE and RESET misbehave. ``raw_reply`` sends its
steps without status line or headers, so that anything at all can be put on the wire. A function
``Received -> Reply`` may stand for a reply.

What happened is in ``upstream.requests``: ``request.cancelled()`` is true once the client has gone away before
the whole reply was sent. ``stop()`` and ``start()`` keep the port, so an upstream can go down and come back.
``black_hole()`` is an address where connecting hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, cast

from tests.harness import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Fault(Enum):
    """A step of a reply that does what no server should."""

    HANG = auto()  # send nothing more, until the client goes away
    CLOSE = auto()  # close the connection here
    RESET = auto()  # abort it: the client's next read or write fails with ECONNRESET


HANG, CLOSE, RESET = Fault.HANG, Fault.CLOSE, Fault.RESET
Step = bytes | float | threading.Event | Fault


@dataclass(frozen=True)
class Reply:
    """One answer. ``framing`` is ``length`` (the steps' bytes are counted), ``chunked``, ``close`` (the end of
    the connection ends the body) or ``raw`` (no status line, no headers: the steps are all that is sent).
    """

    steps: Sequence[Step]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    framing: str = "length"

    def head(self) -> bytes:
        if self.framing == "raw":
            return b""
        headers = dict(self.headers)
        if self.framing == "length":
            headers.setdefault("content-length", str(sum(len(s) for s in self.steps if isinstance(s, bytes))))
        elif self.framing == "chunked":
            headers["transfer-encoding"] = "chunked"
        lines = [f"HTTP/1.1 {self.status} Status", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def frame(self, piece: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(piece), piece) if self.framing == "chunked" else piece

    @property
    def tail(self) -> bytes:
        return b"0\r\n\r\n" if self.framing == "chunked" else b""


def json_reply(content: Any, status: int = 200, *before: Step, **headers: str) -> Reply:
    """A JSON document after the steps ``before``. ``retry_after="3"`` makes a ``retry-after`` header."""
    named = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    return Reply([*before, json.dumps(content).encode()], status, named)


def sse_reply(*events: Any, gap: float = 0.0, done: bool = True, then: Sequence[Step] = ()) -> Reply:
    """A chunked event stream: each event (bytes as they are, else as JSON) in a piece of its own.

    ``gap`` is in seconds. ``done`` ends it with ``data: [DONE]``; ``then`` are steps to do after the last piece,
    such as ``[RESET]``.
    """
    pieces = [e if isinstance(e, bytes) else json.dumps(e).encode() for e in events] + [b"[DONE]"] * done
    steps: list[Step] = []
    for number, piece in enumerate(pieces):
        if number and gap:
            steps.append(gap)
        steps.append(b"data: %s\n\n" % piece)
    return Reply([*steps, *then], headers={"content-type": "text/event-stream"}, framing="chunked")


def raw_reply(*steps: Step) -> Reply:
    """Nothing but the steps; the connection closes after the last."""
    return Reply(steps, framing="raw")


@dataclass
class Received:
    """One request as it arrived. Header names are in lower case; times are of ``time.monotonic()``."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int  # numbers the connections: the same number means that it was reused
    at: float = field(default_factory=time.monotonic)
    sent: int = 0  # bytes of the reply that the client's side of the connection has taken
    answered_at: float | None = None
    gone_at: float | None = None  # when the client went away before the reply was complete

    def json(self) -> Any:
        return json.loads(self.body)

    def cancelled(self) -> bool:
        return self.gone_at is not None

    def wait_cancelled(self, timeout: float = 5.0) -> float:
        """When the client went away; fails when it does not within ``timeout`` seconds."""
        eventually(self.cancelled, timeout, f"the client goes away from {self.method} {self.path}")
        return cast("float", self.gone_at)


Answerer = Reply | Callable[[Received], Reply]


class FakeUpstream:
    """See the module's docstring. ``accept=False``: connections are made by the kernel but never answered."""

    def __init__(self, *, accept: bool = True) -> None:
        self.default: Answerer = json_reply({"object": "fake"})
        self.requests: list[Received] = []
        self.connections = 0  # made in all
        self.open: set[_Connection] = set()
        self._accept = accept
        self._script: deque[Answerer] = deque()
        self._port = 0
        self._thread: threading.Thread | None = None
        self._end: Callable[[], object] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def open_connections(self) -> int:
        return len(self.open)

    def script(self, *replies: Answerer) -> None:
        """Add replies, one a request."""
        self._script.extend(replies)

    def wait_requests(self, count: int, timeout: float = 5.0) -> list[Received]:
        """The requests once there are ``count`` of them."""
        eventually(lambda: len(self.requests) >= count, timeout, f"{count} requests arrive")
        return self.requests

    def reply_to(self, request: Received) -> Reply:
        answerer = self._script.popleft() if self._script else self.default
        return answerer if isinstance(answerer, Reply) else answerer(request)

    def start(self) -> None:
        """Listen: on a free port the first time, on the same one afterwards."""
        listener = socket.create_server(("127.0.0.1", self._port), backlog=1024)
        self._port = listener.getsockname()[1]
        started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listener, started)), name="fake-upstream"
        )
        self._thread.start()
        started.wait()

    def stop(self) -> None:
        """Close the port and every connection."""
        if self._thread:
            self._end()
            self._thread.join()
            self._thread = None

    def __enter__(self) -> FakeUpstream:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _serve(self, listener: socket.socket, started: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self._end = lambda: loop.call_soon_threadsafe(ended.set)
        with listener:
            if self._accept:
                await loop.create_server(lambda: _Connection(self), sock=listener)
            started.set()
            await ended.wait()
        for connection in list(self.open):
            connection.abort()
        await asyncio.sleep(0)  # lets the transports close their sockets; asyncio.run ends the tasks


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, upstream: FakeUpstream) -> None:
        self._upstream = upstream
        self._buffer = bytearray()
        self._more = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()
        self._current: Received | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(0)
        self._upstream.connections += 1
        self._number = self._upstream.connections
        self._upstream.open.add(self)
        self._task = asyncio.get_running_loop().create_task(self._run())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._more.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.open.discard(self)
        if self._current:
            self._current.gone_at = time.monotonic()
        self._gone.set()
        self._task.cancel()

    def abort(self) -> None:
        self._current = None  # it is not the client that goes away now
        self.transport.abort()

    async def _run(self) -> None:
        keep = True
        while keep:
            request = await self._read()
            self._current = request
            self._upstream.requests.append(request)
            reply = self._upstream.reply_to(request)
            await self._send(request, reply)
            request.answered_at = time.monotonic()
            self._current = None
            keep = reply.framing not in ("close", "raw")
        self.transport.close()

    async def _read(self) -> Received:
        head = (await self._until(b"\r\n\r\n")).decode("latin-1")
        line, *rows = head.split("\r\n")
        method, path, _ = line.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
        if headers.get("transfer-encoding") == "chunked":
            body = await self._chunks()
        else:
            body = await self._take(int(headers.get("content-length", "0")))
        return Received(method, path, headers, body, self._number)

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self._until(b"\r\n"), 16):
            body += (await self._take(size + 2))[:-2]
        await self._take(2)
        return body

    async def _until(self, mark: bytes) -> bytes:
        while (at := self._buffer.find(mark)) < 0:
            await self._wait()
        return (await self._take(at + len(mark)))[:at]

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._wait()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def _wait(self) -> None:
        self._more.clear()
        await self._more.wait()

    async def _send(self, request: Received, reply: Reply) -> None:
        # The head leaves with the first piece, not before: a reply that begins with a wait has sent nothing.
        unsent = reply.head()
        for step in reply.steps:
            if isinstance(step, bytes):
                await self._write(request, unsent + reply.frame(step))
                unsent = b""
            else:
                await self._do(step)
        await self._write(request, unsent + reply.tail)

    async def _write(self, request: Received, data: bytes) -> None:
        self.transport.write(data)
        await self._writable.wait()
        request.sent += len(data)

    async def _do(self, step: float | threading.Event | Fault) -> None:
        if isinstance(step, threading.Event):
            while not step.is_set():
                await asyncio.sleep(0.001)
        elif not isinstance(step, Fault):
            await asyncio.sleep(step)
        else:
            self._misbehave(step)
            await self._gone.wait()

    def _misbehave(self, fault: Fault) -> None:
        if fault is RESET:
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.abort()
        elif fault is CLOSE:
            self._current = None
            self.transport.close()


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """The URL of an address where a connection is never made: the listener's queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
