"""Clients that go away in every state, that read slowly, that never finish their request, and a thousand at once."""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.fakes import HANG, FakeUpstream, Reply, black_hole, json_reply, raw_reply, sse_reply
from tests.gateway import ANSWER, Client, chat, delta, detail, post, request_bytes, wait_free
from tests.harness import Byzer, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

OK = json_reply(ANSWER)


def leave(client: Client, how: str) -> float:
    """End the client's connection; returns when."""
    if how == "reset":
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif how == "half":
        client.socket.shutdown(socket.SHUT_WR)
        return time.monotonic()
    client.close()
    return time.monotonic()


def assert_cancelled(server: Byzer, upstream: FakeUpstream, model: str, left: float) -> None:
    """The upstream saw it, the slot is free, the request is counted once, and the next one is served at once."""
    gone = upstream.requests[0].wait_cancelled(2)
    assert gone - left < 1  # some milliseconds, where the machine is not busy
    wait_free(server, model)
    assert detail(server, model)["requests"] == {"ok": 0, "cancelled": 1, "retries": 0}
    assert post(server, model).json() == ANSWER


def test_who_leaves_with_the_last_event_was_answered(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str]
) -> None:
    model = place()
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
    upstream.script(sse_reply(delta("a"), usage, then=[HANG]))
    with Client(server) as client:
        client.post(chat(model, stream=True))
        client.read_until(b"data: [DONE]\n\n")
    wait_free(server, model)
    stat = detail(server, model)
    assert stat["requests"] == {"ok": 1, "cancelled": 0, "retries": 0}
    assert stat["tokens"] == {"prompt": 5, "completion": 7}


# -- going away in every state --------------------------------------------------------------------------------------

STATES: dict[str, tuple[Reply, bool, bytes]] = {
    "before the first byte": (raw_reply(HANG), False, b""),
    "before the first byte of a stream": (raw_reply(HANG), True, b""),
    "in the head": (raw_reply(b"HTTP/1.1 200 OK\r\n", HANG), True, b""),
    "streaming": (sse_reply(delta("a"), done=False, then=[HANG]), True, b"data: "),
    "streaming fast": (sse_reply(*[delta("a")] * 3000, gap=0.001), True, b"data: "),
    "in a whole answer": (
        Reply([b'{"half', HANG], headers={"content-type": "application/json"}, framing="chunked"),
        False,
        b"",
    ),
    "in a large answer": (Reply([b"x" * 90_000, HANG], headers={"content-length": "99999"}), False, b"x" * 1000),
    "in an error": (Reply([b'{"error', HANG], 500, framing="chunked"), False, b""),
}


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("state", STATES)
def test_a_client_that_goes_away_frees_upstream_and_slot(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str], state: str, how: str
) -> None:
    reply, stream, expected = STATES[state]
    model = place()
    upstream.script(reply)
    with Client(server) as client:
        client.post(chat(model, stream=stream))
        upstream.wait_requests(1)
        if expected:
            client.read_until(expected)
        assert_cancelled(server, upstream, model, leave(client, how))


@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_going_away_while_queued(server: Byzer, upstream: FakeUpstream, place: Callable[..., str], how: str) -> None:
    model = place()
    upstream.script(raw_reply(HANG))
    with Client(server) as running, Client(server) as waiting:
        running.post(chat(model))
        upstream.wait_requests(1)
        waiting.post(chat(model))
        eventually(lambda: detail(server, model)["queue"]["waiting"] == 1)
        leave(waiting, how)
        eventually(lambda: detail(server, model)["queue"]["waiting"] == 0, 2)
        leave(running, "close")
        wait_free(server, model)
    assert len(upstream.requests) == 1  # the one that left the queue was never sent
    assert detail(server, model)["requests"]["cancelled"] == 2


def test_going_away_while_connecting(server: Byzer, place: Callable[..., str]) -> None:
    with black_hole() as hole:
        port = int(hole.rpartition(":")[2])
        model = place(url=hole, connect_timeout=30)

        def connecting() -> list[Any]:
            return [c for c in psutil.Process(server.pid).net_connections("tcp") if c.raddr and c.raddr.port == port]

        with Client(server) as client:
            client.post(chat(model))
            eventually(connecting)
        eventually(lambda: not connecting(), 2)
        wait_free(server, model)
        assert detail(server, model)["requests"]["cancelled"] == 1


def test_going_away_between_two_attempts(server: Byzer, upstream: FakeUpstream, place: Callable[..., str]) -> None:
    model = place()
    upstream.script(json_reply({}, 429, retry_after="4"))
    with Client(server) as client:
        client.post(chat(model))
        upstream.wait_requests(1)
        wait_free(server, model)
    eventually(lambda: detail(server, model)["requests"]["cancelled"] == 1, 2)
    assert len(upstream.requests) == 1


def test_going_away_with_a_second_request_already_sent(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str]
) -> None:
    model = place()
    upstream.script(raw_reply(HANG))
    with Client(server) as client:
        client.send(request_bytes(chat(model)) * 3)
        upstream.wait_requests(1)
        left = leave(client, "close")
    assert_cancelled(server, upstream, model, left)
    assert len(upstream.requests) == 2


def test_a_client_of_a_stream_whose_upstream_is_silent_is_missed(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str]
) -> None:
    """Ten times over one slot: each is noticed without a single byte to relay."""
    model = place()
    upstream.default = sse_reply(delta("a"), done=False, then=[HANG])
    for count in range(1, 11):
        with Client(server) as client:
            client.post(chat(model, stream=True))
            client.read_until(b"data: ")
        upstream.requests[-1].wait_cancelled(2)
        assert len(upstream.requests) == count


# -- slow and unfinished --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_slow_reader_slows_its_upstream_and_not_the_memory(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str], stream: bool
) -> None:
    model = place({"num_workers": 2}, idle_timeout=1)
    piece = b"data: %s\n\n" % (b"x" * 100_000)
    kind = "text/event-stream" if stream else "application/json"
    reply = Reply([piece] * 1000 + [b"data: [DONE]\n\n"], headers={"content-type": kind}, framing="chunked")
    upstream.script(reply)
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    with Client(server, receive_buffer=64 * 1024) as client:
        client.post(chat(model, stream=stream))
        upstream.wait_requests(1)
        sent = -1
        while sent != upstream.requests[0].sent:  # until the upstream is held
            sent = upstream.requests[0].sent
            time.sleep(0.3)
        assert sent < 30_000_000
        assert process.memory_info().rss - before < 16 * 1024 * 1024
        assert post(server, model).json() == ANSWER  # nobody else is held
        time.sleep(1.2)  # past the idle timeout: the upstream is not to blame
        answer = client.answer()
    assert answer.body == piece * 1000 + b"data: [DONE]\n\n"
    assert process.memory_info().rss - before < 24 * 1024 * 1024
    wait_free(server, model)
    assert detail(server, model)["errors"] == {}


def test_a_slow_reader_that_goes_away_is_noticed(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str]
) -> None:
    model = place()
    upstream.script(Reply([b"x" * 100_000] * 1000, headers={"content-type": "text/event-stream"}, framing="chunked"))
    with Client(server, receive_buffer=64 * 1024) as client:
        client.post(chat(model, stream=True))
        upstream.wait_requests(1)
        eventually(lambda: upstream.requests[0].sent > 1_000_000)
        time.sleep(0.2)
        left = leave(client, "reset")
    assert_cancelled(server, upstream, model, left)


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"\r\n",
        b"POST /v1/chat/completions HT",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n",
        b'POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"model":',
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{",
    ],
    ids=["nothing", "a line end", "line", "header", "no body", "half a body", "half a chunk"],
)
def test_a_request_that_is_never_finished_costs_nothing(server: Byzer, part: bytes) -> None:
    process = psutil.Process(server.pid)
    for how in ("close", "reset", "half"):
        with Client(server) as client:
            port = client.socket.getsockname()[1]

            def there(port: int = port) -> bool:
                return port in {c.raddr.port for c in process.net_connections("tcp") if c.raddr}

            client.send(part)
            eventually(there)
            leave(client, how)
            eventually(lambda: not there(), 2, "the server has let it go")


def connections(process: psutil.Process) -> int:
    """Connections of the server to anyone."""
    return sum(1 for c in process.net_connections("tcp") if c.raddr)


# -- many -----------------------------------------------------------------------------------------------------------


def test_a_thousand_clients_on_twenty_slots(server: Byzer, upstream: FakeUpstream, place: Callable[..., str]) -> None:
    model = place({"num_workers": 10, "worker_concurrency": 2})
    upstream.default = json_reply(ANSWER, 200, 0.01)
    process = psutil.Process(server.pid)
    assert post(server, model).status == 200
    files, sockets = process.num_fds(), connections(process)
    clients = [Client(server, timeout=50) for _ in range(1000)]
    try:
        for number, client in enumerate(clients):  # one after the other: their order is that of the queue
            client.post(chat(model, seed=number))
        answers = [client.answer() for client in clients]
    finally:
        for client in clients:
            client.close()
    assert {a.status for a in answers} == {200}
    assert {a.body for a in answers} == {answers[0].body}

    order = [r.json()["seed"] for r in upstream.requests[1:]]
    assert sorted(order) == list(range(1000))
    displaced = [abs(place - seed) for place, seed in enumerate(order)]
    assert max(displaced) < 100  # the server may read connections in any order within a turn of its loop
    assert upstream.connections <= 21
    waits = [int(a.headers["x-byzerllm-queue-ms"]) for a in answers]
    assert max(waits) > 100

    wait_free(server, model)
    stat = detail(server, model)
    assert sum(stat["total_requests"]) == 1001
    assert max(stat["total_requests"]) - min(stat["total_requests"]) <= 20
    assert stat["errors"] == {}
    eventually(lambda: connections(process) <= sockets + 20, 5, "no client's connection is left")
    eventually(lambda: process.num_fds() <= files + 20, 5, "no file is left open")


def test_clients_that_all_go_away_at_once(server: Byzer, upstream: FakeUpstream, place: Callable[..., str]) -> None:
    model = place({"num_workers": 5})
    upstream.default = raw_reply(HANG)
    process = psutil.Process(server.pid)
    files = process.num_fds()
    for _ in range(3):
        clients = [Client(server) for _ in range(200)]
        for client in clients:
            client.post(chat(model, stream=True))
        eventually(lambda: detail(server, model)["queue"]["waiting"] == 195)
        for client in clients:
            leave(client, "reset")
        wait_free(server, model)
    assert detail(server, model)["requests"] == {"ok": 0, "cancelled": 600, "retries": 0}
    eventually(lambda: upstream.open_connections == 0, 2)
    eventually(lambda: process.num_fds() <= files, 5, "no file is left open")
    upstream.default = OK
    assert post(server, model).json() == ANSWER


def test_the_log_has_no_error_of_ours(server: Byzer) -> None:
    """After all of the above: a client that goes away is no defect."""
    log = server.log_tail(100_000)
    assert "Traceback" not in log
    assert " ERROR " not in log
