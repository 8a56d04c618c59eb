"""A built-in upstream that speaks OpenAI's HTTP API: for trying byzerllm without a key, for tests and for benchmarks.

Run it alone with ``python -m byzerllm.providers.mock``, or inside a running loop with ``start``. How it answers is set
by knobs (``mock_replies.Knobs``), each sent by the caller as the request header ``x-mock-<knob>``, so that every
instance on top of one listener has its own. It is written on bare protocols, because the benchmarks measure what
stands in front of it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import deque
from typing import cast

import httptools
import msgspec

from byzerllm.errors import InvalidInput
from byzerllm.providers.mock_log import ConversationLog
from byzerllm.providers.mock_media import PATHS, reply_to
from byzerllm.providers.mock_replies import (
    Knobs,
    Refusal,
    Reply,
    chat,
    complete,
    embed,
    failure,
    model_list,
    response,
    whole,
)

MAX_BODY = 64 * 1024 * 1024
MAX_PIPELINED = 64
_KNOB = b"x-mock-"
_LOG_FILE = b"x-mock-log-file"
_GENERATIONS = (b"/completions", b"/embeddings", *PATHS)

Headers = tuple[tuple[bytes, bytes], ...]


class Request(msgspec.Struct):
    """One HTTP request as it was read; ``knobs`` are its x-mock headers, but for the one that names a log file."""

    method: bytes
    path: bytes
    authorization: bytes
    content_type: bytes
    knobs: Headers
    body: bytes
    keep_alive: bool
    log_file: bytes = b""


class Served(msgspec.Struct):
    """One set of knobs and the number of generations that were asked for with it."""

    knobs: Knobs
    requests: int = 0


class Mock:
    """Chooses the replies and counts.

    ``requests`` is the number of generations asked for, ``active`` those being answered now, ``aborted`` those whose
    client went away before the end; ``connections`` are the live ones.
    """

    def __init__(self, defaults: Knobs | None = None, log: ConversationLog | None = None) -> None:
        self._log = log
        self.requests = 0
        self.active = 0
        self.aborted = 0
        self.connections: set[Connection] = set()
        self._defaults = msgspec.structs.asdict(defaults or Knobs())
        self._served: dict[Headers, Served] = {}

    def close_connections(self) -> None:
        """Cut every live connection: closing the listener leaves them open."""
        for connection in list(self.connections):
            connection.abort()

    def reply(self, request: Request) -> Reply:
        """What to answer; never raises."""
        try:
            return self._route(request)
        except Refusal as refusal:
            return whole(failure(refusal))

    def _route(self, request: Request) -> Reply:
        path = request.path.partition(b"?")[0]
        if request.method == b"GET" and path == b"/mock/stats":
            return whole(response(0, self._stats()))
        if request.method == b"GET" and path == b"/health":
            return whole(response(0, {"status": "ok"}))
        served = self._find(request.knobs)
        knobs = served.knobs
        if knobs.api_key and request.authorization != b"Bearer " + knobs.api_key.encode():
            raise Refusal(401, "Incorrect API key provided to the mock upstream.", "invalid_api_key")
        if request.method == b"GET" and path.endswith(b"/models"):
            return model_list(knobs)
        if request.method == b"POST" and path.endswith(_GENERATIONS):
            return self._fault(served) or self._generate(path, request, knobs)
        shown = path[max(0, path.find(b"/v1/")) :]  # what is before it is the secret of the built-in one
        raise Refusal(404, f"Unknown request: {_text(request.method)} {_text(shown)}", "not_found")

    def _generate(self, path: bytes, request: Request, knobs: Knobs) -> Reply:
        body, number = request.body, self.requests
        if path.endswith(b"/chat/completions"):
            if request.log_file:
                self._append(request)
            return chat(body, knobs, number, time.time())
        if path.endswith(b"/completions"):
            return complete(body, knobs, number, time.time())
        if path.endswith(b"/embeddings"):
            return embed(body, knobs, number)
        return reply_to(path, request.content_type, body, knobs, number, time.time())

    def _append(self, request: Request) -> None:
        if self._log is None or not self._log.admits(request.path):
            raise Refusal(403, "This mock upstream writes no file.", "forbidden")
        try:
            self._log.append(_text(request.log_file), request.body)
        except InvalidInput as error:
            raise Refusal(400, error.message, "log_file") from None

    def _stats(self) -> dict[str, int]:
        return {"requests": self.requests, "active": self.active, "aborted": self.aborted}

    def _find(self, headers: Headers) -> Served:
        served = self._served.get(headers)
        if served is None:
            given = {_text(k[len(_KNOB) :]).replace("-", "_"): _text(v) for k, v in headers}
            try:
                knobs = msgspec.convert({**self._defaults, **given}, Knobs, strict=False)
            except msgspec.ValidationError as error:
                raise Refusal(400, f"x-mock header: {error}", "invalid_knob") from None
            if len(self._served) >= 1024:
                self._served.clear()
            served = self._served[headers] = Served(knobs)
        return served

    def _fault(self, served: Served) -> Reply | None:
        """Count one generation; the fault that it is to meet, or None."""
        self.requests += 1
        served.requests += 1
        knobs, number = served.knobs, served.requests
        if knobs.drop and number % knobs.drop == 0:
            return Reply(iter(()), then="close")
        status = knobs.failing_status(number)
        if status is None:
            return None
        code = {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(status)
        refusal = Refusal(status, f"The mock upstream was told to fail with status {status}.", code)
        return whole(failure(refusal, knobs.retry_after), delay=knobs.latency)


class Connection(asyncio.Protocol):
    """One client connection: reads requests, writes one reply after the other. Timers end with the connection."""

    _transport: asyncio.Transport
    _reply: Reply

    def __init__(self, mock: Mock) -> None:
        self._mock = mock
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._timer: asyncio.Handle | None = None
        self._due = 0.0
        self._busy = False
        self._paused = False
        self._keep_alive = True

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._mock.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._mock.connections.discard(self)
        self._waiting.clear()
        if self._busy:
            self._mock.aborted += 1
            self._end()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._transport.write(failure(Refusal(400, f"The request is no plain HTTP/1.1: {error}", None)))
            self._transport.close()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._busy and self._timer is None:
            self._write()

    def abort(self) -> None:
        """Cut the connection now."""
        self._transport.abort()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._path = self._authorization = self._content_type = self._log_file = b""
        self._knobs: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._size = 0

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == _LOG_FILE:
            self._log_file = value
        elif name.startswith(_KNOB):
            self._knobs.append((name, value))
        elif name == b"authorization":
            self._authorization = value
        elif name == b"content-type":
            self._content_type = value

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size <= MAX_BODY:
            self._body.append(body)

    def on_message_complete(self) -> None:
        request = Request(
            self._parser.get_method(),
            self._path,
            self._authorization,
            self._content_type,
            tuple(self._knobs),
            b"".join(self._body),
            self._parser.should_keep_alive(),
            self._log_file,
        )
        if self._size > MAX_BODY or len(self._waiting) >= MAX_PIPELINED:
            self._transport.write(failure(Refusal(413, "The mock upstream does not take that much.", None)))
            self._transport.close()
        elif self._busy:
            self._waiting.append(request)
        else:
            self._begin(request)

    # Answering.

    def _begin(self, request: Request) -> None:
        self._keep_alive = request.keep_alive
        self._reply = self._mock.reply(request)
        self._busy = True
        self._mock.active += 1
        self._due = self._loop.time()
        if self._reply.delay:
            self._wait(self._reply.delay)
        else:
            self._write()

    def _wait(self, seconds: float) -> None:
        # Counted from when the last part was due, so that lateness does not add up.
        self._due = max(self._due + seconds, self._loop.time())
        self._timer = self._loop.call_at(self._due, self._write)

    def _write(self) -> None:
        """Write the part that is due, if the client takes it: each token is a packet of its own, as from an engine."""
        self._timer = None
        if self._paused:
            return
        part = next(self._reply.parts, None)
        if part is None:
            self._finish()
            return
        self._transport.write(part)
        if self._reply.single:
            self._finish()
        elif self._reply.gap:
            self._wait(self._reply.gap)
        else:
            self._timer = self._loop.call_soon(self._write)

    def _finish(self) -> None:
        if self._reply.then == "stall":
            return
        self._end()
        if self._reply.then == "close" or not self._keep_alive:
            self._transport.close()
        elif self._waiting:
            self._begin(self._waiting.popleft())

    def _end(self) -> None:
        self._busy = False
        self._mock.active -= 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def start(host: str = "127.0.0.1", port: int = 0, mock: Mock | None = None) -> asyncio.Server:
    """Listen in the running loop; ``server.sockets[0].getsockname()`` has the port.

    Raises:
        OSError: the address is taken.
    """
    shared = mock or Mock()
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Connection(shared), host, port, backlog=4096)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m byzerllm.providers.mock", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    for knob in msgspec.structs.fields(Knobs):
        parser.add_argument(f"--{knob.name}", f"--{knob.name.replace('_', '-')}", default=argparse.SUPPRESS)
    return parser


async def _serve(host: str, port: int, knobs: Knobs) -> None:
    server = await start(host, port, Mock(knobs))
    address = server.sockets[0].getsockname()
    sys.stdout.write(f"http://{host}:{address[1]}/v1\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> None:
    """Run the mock in the foreground and print its address."""
    import uvloop

    parser = _parser()
    given = vars(parser.parse_args())
    host, port = given.pop("host"), given.pop("port")
    try:
        uvloop.run(_serve(host, port, msgspec.convert(given, Knobs, strict=False)))
    except (msgspec.ValidationError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
