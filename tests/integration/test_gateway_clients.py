"""Odd clients: every form that HTTP/1.1 allows, what is no request at all, and clients that keep the server waiting."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.fakes import FakeUpstream
from tests.gateway import ANSWER, MESSAGES, UPSTREAM_MODEL, Client, chat, deploy, request_bytes
from tests.harness import Byzer

from byzerllm.errors import TooLarge
from byzerllm.gateway.http import ClientGone, Receive, Scope, Send, read_body, send_bytes
from byzerllm.gateway.listeners import http_server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server(byzer: Byzer, vendor: FakeUpstream) -> Byzer:
    byzer.run("server", "start")
    deploy(byzer, "chat", vendor, {"num_workers": 2})
    return byzer


# -- odd clients ----------------------------------------------------------------------------------------------------


def test_a_connection_is_kept_and_requests_may_be_pipelined(server: Byzer) -> None:
    with Client(server) as client:
        for _ in range(3):
            client.post(chat("chat"))
            assert client.answer().status == 200
        client.send(request_bytes(chat("chat"), x_request_id="1") + request_bytes(b"{", x_request_id="2"))
        client.post(chat("chat"), x_request_id="3")
        answers = [client.answer() for _ in range(3)]
    assert [(a.status, a.headers["x-request-id"]) for a in answers] == [(200, "1"), (400, "2"), (200, "3")]


def test_connection_close_is_honoured(server: Byzer) -> None:
    with Client(server) as client:
        client.post(chat("chat"), connection="close")
        assert client.answer().headers["connection"] == "close"
        assert client.at_end()


def test_http_1_0(server: Byzer) -> None:
    with Client(server) as client:
        client.send(b"GET /health HTTP/1.0\r\n\r\n")
        answer = client.answer("GET")
        assert (answer.status, client.at_end()) == (200, True)
    with Client(server) as client:
        client.post(chat("chat"), version="1.0")
        assert client.answer().json() == ANSWER
        assert client.at_end()


def test_expect_100_continue(server: Byzer) -> None:
    whole = request_bytes(chat("chat"), expect="100-continue")
    head, _, body = whole.partition(b"\r\n\r\n")
    with Client(server) as client:
        client.send(head + b"\r\n\r\n")
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert client.answer().status == 200


def test_a_chunked_request_body(server: Byzer, vendor: FakeUpstream) -> None:
    body = json.dumps(chat("chat", seed=7)).encode()
    with Client(server) as client:
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 10):
            piece = body[at : at + 10]
            client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        client.send(b"0\r\n\r\n")
        assert client.answer().status == 200
    assert vendor.requests[-1].json() == {"model": UPSTREAM_MODEL, "messages": MESSAGES, "seed": 7}


def test_head_has_the_headers_of_get_and_no_body(server: Byzer) -> None:
    with Client(server) as client:
        client.send(b"HEAD /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answer = client.answer("HEAD")
        assert (answer.status, answer.body) == (200, b"")
        assert int(answer.headers["content-length"]) > 0
        client.post(chat("chat"))
        assert client.answer().status == 200


def test_a_client_that_offers_http2_is_served_with_http1_on_a_kept_connection(server: Byzer) -> None:
    """Java's HttpClient and `curl --http2` ask for an upgrade with every first request."""
    with Client(server) as client:
        for _ in range(3):
            client.post(chat("chat"), connection="Upgrade, HTTP2-Settings", upgrade="h2c", http2_settings="AAMAAABk")
            assert client.answer().status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x: " + b"y" * 900_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(100_000)) + b"\r\n",
        b"GET /" + b"x" * 900_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    ],
    ids=["tls", "http2", "no colon", "large header", "many headers", "large url", "two lengths", "both", "negative"],
)
def test_what_is_no_request_is_answered_with_400_and_closed(server: Byzer, data: bytes) -> None:
    with Client(server) as client:
        try:
            client.send(data)
            assert client.answer().status == 400
            assert client.at_end()
        except ConnectionError:  # closed, and reset because it still sent
            pass
    assert server.http("GET", "/health").status == 200


def test_an_endless_header_does_not_fill_the_memory(server: Byzer) -> None:
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    with Client(server) as client:
        client.send(b"GET /health HTTP/1.1\r\nx: ")
        with pytest.raises(ConnectionError):  # noqa: PT012 - the loop is what is tested
            for _ in range(1000):
                client.send(b"y" * 65536)
    assert process.memory_info().rss - before < 16 * 1024 * 1024


# -- clients that keep the server waiting ---------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server in this process whose deadlines are short; it answers every request with ``body``."""
    for name in ("HEADER_TIMEOUT", "BODY_SILENCE", "WRITE_STALL"):
        monkeypatch.setattr(f"byzerllm.gateway.protocol.{name}", 0.3)
    loop = asyncio.new_event_loop()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(scope, receive, 1000)
            await send_bytes(send, 200, b"x" * 50_000_000 if body == b"much" else b"ok", [])
        except TooLarge as error:
            await send_bytes(send, error.status, b"", [])
        except ClientGone:
            pass

    listener = socket.create_server(("127.0.0.1", 0))
    http = http_server(app, drain_timeout=1)
    thread = threading.Thread(target=lambda: loop.run_until_complete(http.serve(sockets=[listener])))
    thread.start()
    yield listener.getsockname()[1]
    http.should_exit = True
    thread.join()
    loop.close()


POST = b"POST / HTTP/1.1\r\nhost: localhost\r\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (POST, b""),
        (POST + b"content-length: 9\r\n\r\n", b"HTTP/1.1 408 "),
        (POST + b"content-length: 9\r\n\r\nhalf", b"HTTP/1.1 408 "),
        (POST + b"transfer-encoding: chunked\r\n\r\n5\r\nha", b"HTTP/1.1 408 "),
        (POST + b"content-length: 5000\r\n\r\nhalf", b"HTTP/1.1 413 "),
        (POST + b"content-length: 2\r\n\r\nok" + POST, b"HTTP/1.1 200 "),
    ],
    ids=[
        "nothing",
        "a line end",
        "half a head",
        "no body",
        "half a body",
        "half a chunk",
        "refused",
        "half of a second",
    ],
)
def test_a_client_that_does_not_go_on_is_let_go(impatient: int, data: bytes, expected: bytes) -> None:
    with Client(impatient, timeout=5) as client:
        client.send(data)
        said = b""
        while piece := client.read_some():
            said += piece
        assert said.startswith(expected)
        assert said.count(b"HTTP/1.1 ") == bool(expected)


def test_a_client_that_sends_what_was_refused_and_stays_is_let_go(impatient: int) -> None:
    with Client(impatient, timeout=5) as client:
        client.send(POST + b"content-length: 5000\r\n\r\n")
        assert client.answer().status == 413
        client.send(b"x" * 5000)
        assert client.at_end()


def test_a_client_that_does_not_read_is_let_go(impatient: int) -> None:
    with Client(impatient, receive_buffer=65536, timeout=5) as client:
        client.send(POST + b"content-length: 4\r\n\r\nmuch")
        time.sleep(1)
        size = 0
        while piece := client.read_some():
            size += len(piece)
        assert size < 50_000_000


def test_a_client_that_goes_on_slowly_is_served(impatient: int) -> None:
    with Client(impatient) as client:
        for _ in range(2):
            for byte in POST + b"content-length: 5\r\n\r\n":
                client.send(bytes([byte]))
            for byte in b"slow!":
                time.sleep(0.15)  # each within the limit, all of them beyond it
                client.send(bytes([byte]))
            assert client.answer().status == 200
