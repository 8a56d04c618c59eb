"""The mock upstream over real sockets: faults, pacing, cancellation, and the openai SDK as its client."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
import uvloop

from byzerllm.providers.mock import Mock, start
from byzerllm.providers.mock_replies import MODELS, Knobs

CHAT = {"model": "mock-chat", "messages": [{"role": "user", "content": "hello"}]}
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@asynccontextmanager
async def running(knobs: Knobs | None = None) -> AsyncIterator[tuple[Mock, int]]:
    mock = Mock(knobs)
    server = await start(mock=mock)
    try:
        yield mock, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        mock.close_connections()
        await until(lambda: not mock.connections)


async def until(condition: Callable[[], bool], seconds: float = 2.0) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come true in time"
        await asyncio.sleep(0.002)
    return time.monotonic() - began


def post(body: Any = CHAT, path: str = "/v1/chat/completions", method: str = "POST", **knobs: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: mock", f"Content-Length: {len(data)}"]
    lines += [f"X-Mock-{name.replace('_', '-')}: {value}" for name, value in knobs.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def talk(port: int, *requests: bytes, until_close: bool = False) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"".join(requests))
        if until_close:
            return await reader.read()
        return b"".join([await _answer(reader) for _ in requests])
    finally:
        writer.close()
        await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if b"chunked" in head:
        return head + await reader.readuntil(b"\r\n0\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head + await reader.readexactly(size)


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    def runner(main: Awaitable[None]) -> None:
        loop = LOOPS[request.param]()
        try:
            loop.run_until_complete(main)
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    return runner


Run = Callable[[Awaitable[None]], None]


def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    async def main() -> None:
        async with running() as (mock, port):
            bodies = [{**CHAT, "model": f"m{n}", "stream": n == 1} for n in range(3)]
            said = await talk(port, *[post(body, latency="0.01") for body in bodies])
            order = [said.index(f'"model":"m{n}"'.encode()) for n in range(3)]
            assert order == sorted(order)
            assert (mock.requests, mock.active, mock.aborted) == (3, 0, 0)

    run(main())


def test_latency_and_the_time_between_tokens_are_kept(run: Run) -> None:
    async def main() -> None:
        async with running() as (_, port):
            began = time.monotonic()
            said = await talk(port, post({**CHAT, "stream": True}, latency="0.1", itl="0.02", tokens="10"))
            took = time.monotonic() - began
            assert said.count(b'"content":" ') == 9
            assert 0.1 + 10 * 0.02 - 0.005 <= took < 1.5

    run(main())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("knobs", [{"latency": "60"}, {"latency": "0", "stall_after": "1"}])
def test_a_client_that_leaves_is_noticed_at_once(run: Run, stream: bool, knobs: dict[str, str]) -> None:
    async def main() -> None:
        async with running() as (mock, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post({**CHAT, "stream": stream}, **knobs))
            await until(lambda: mock.active == 1)
            writer.close()
            await writer.wait_closed()
            assert await until(lambda: mock.active == 0) < 0.1
            assert (mock.requests, mock.aborted, len(mock.connections)) == (1, 1, 0)

    run(main())


def test_a_client_that_does_not_read_stops_the_stream(run: Run) -> None:
    async def main() -> None:
        async with running() as (mock, port):
            client = socket.create_connection(("127.0.0.1", port))
            client.setblocking(False)
            client.sendall(post({**CHAT, "stream": True}, tokens="1000000"))
            await until(lambda: mock.active == 1)
            await asyncio.sleep(0.1)
            (connection,) = mock.connections
            assert connection._transport.get_write_buffer_size() < 1_000_000  # of some 180 MB
            for _ in range(20):  # it goes on as soon as somebody reads
                assert await asyncio.get_running_loop().sock_recv(client, 1 << 20)
            client.close()
            await until(lambda: mock.aborted == 1)

    run(main())


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({"drop": "1"}, b""),
        ({"malformed": "true"}, b"\x00\x01"),
        ({"cut_after": "0"}, b"HTTP/1.1 200 OK"),
    ],
)
def test_faults_close_the_connection(run: Run, knobs: dict[str, str], expected: bytes) -> None:
    async def main() -> None:
        async with running() as (mock, port):
            said = await talk(port, post(**knobs), until_close=True)
            assert said.startswith(expected)
            assert bool(said) == bool(expected)
            assert (mock.active, mock.aborted) == (0, 0)

    run(main())


def test_every_set_of_knobs_has_its_own_count(run: Run) -> None:
    async def main() -> None:
        async with running() as (_, port):
            failing = post(fail_status="503", fail_every="2", retry_after="7")
            said = await talk(port, failing, post(), failing, post(), failing)
            statuses = re.findall(rb"HTTP/1.1 (\d+) ", said)
            assert statuses == [b"200", b"200", b"503", b"200", b"200"]
            assert said.count(b"Retry-After: 7\r\n") == 1

    run(main())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post(b"{"), 400),
        (post(latency="soon"), 400),
        (post(no_such_knob="1"), 400),
        (post(path="/v1/nothing"), 404),
        (post(method="DELETE"), 404),
        (post(api_key="right"), 401),
        (b"no HTTP\r\n\r\n", 400),
    ],
)
def test_what_is_wrong_gets_an_error_body(run: Run, request_: bytes, status: int) -> None:
    async def main() -> None:
        async with running() as (mock, port):
            head, _, body = (await talk(port, request_)).partition(b"\r\n\r\n")
            assert head.startswith(f"HTTP/1.1 {status} ".encode())
            assert json.loads(body)["error"]["message"]
            assert mock.active == 0

    run(main())


def test_the_openai_client_understands_it() -> None:
    async def main() -> None:
        async with (
            running(Knobs(api_key="right")) as (mock, port),
            openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="right", max_retries=0) as client,
        ):
            assert [model.id async for model in client.models.list()] == list(MODELS)
            answer = await client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
            assert answer.choices[0].message.content == "You said: hello"
            stream = await client.chat.completions.create(**CHAT, stream=True)  # type: ignore[call-overload]
            said = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert "".join(said) == "You said: hello"
            vectors = await client.embeddings.create(model="mock-embedding", input=["a"])
            assert len(vectors.data[0].embedding) == 8
            with pytest.raises(openai.AuthenticationError):
                await client.with_options(api_key="wrong").models.list()
            with pytest.raises(openai.RateLimitError):
                await client.with_options(default_headers={"x-mock-fail-status": "429"}).chat.completions.create(
                    **CHAT  # type: ignore[call-overload]
                )
            assert (mock.requests, mock.active) == (4, 0)

    asyncio.run(main())


def test_alone_it_prints_its_address_and_takes_the_knobs_as_flags() -> None:
    command = [sys.executable, "-m", "byzerllm.providers.mock", "--reply", "as told", "--fail-every", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            url = process.stdout.readline().strip()
            port = int(url.removeprefix("http://127.0.0.1:").removesuffix("/v1"))
            assert b"as told" in asyncio.run(talk(port, post()))
            stats = asyncio.run(talk(port, post(b"", "/mock/stats", "GET"))).partition(b"\r\n\r\n")[2]
            assert json.loads(stats) == {"requests": 1, "active": 0, "aborted": 0}
        finally:
            process.terminate()


@pytest.mark.parametrize("flags", [["--latency", "-1"], ["--tokens", "many"], ["--host", "256.0.0.1"]])
def test_alone_it_refuses_what_it_cannot_do(flags: list[str]) -> None:
    command = [sys.executable, "-m", "byzerllm.providers.mock", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
