"""Upstreams that refuse, break, stall and lie: failover before the first byte, a clear end after it, never a hang."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes import CLOSE, HANG, RESET, FakeUpstream, Reply, black_hole, json_reply, raw_reply, sse_reply
from tests.gateway import ANSWER, UPSTREAM_MODEL, Client, chat, delta, detail, post, wait_free
from tests.harness import Answer, Byzer, eventually, free_port

if TYPE_CHECKING:
    from collections.abc import Callable

OK = json_reply(ANSWER)
FAILED = {"error": {"message": "the vendor's own words", "code": "its_code", "type": "its_type"}}


def error_of(answer: Answer) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


def last_event(answer: Answer) -> dict[str, Any]:
    """The error object that the last event of a stream holds."""
    events = answer.body.strip().split(b"\n\n")
    error: dict[str, Any] = json.loads(events[-1].removeprefix(b"data: "))["error"]
    return error


# -- before the first byte ------------------------------------------------------------------------------------------

FAULTS = {
    "closed": raw_reply(CLOSE),
    "reset": raw_reply(RESET),
    "cut in the head": raw_reply(b"HTTP/1.1 200 OK\r\ncontent-ty"),
    "garbage": raw_reply(b"\x15\x03\x03 garbage\r\n\r\n"),
    "huge headers": raw_reply(*[b"HTTP/1.1 200 OK\r\nx: " + b"y" * 50_000] * 10),
    "cut in the body": Reply([b'{"half', RESET], headers={"content-length": "900", "content-type": "application/json"}),
    "no first event": raw_reply(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"),
    "500": json_reply(FAILED, 500),
    "503": json_reply(FAILED, 503),
    "429": json_reply(FAILED, 429),
    "408": json_reply(FAILED, 408),
    "409": json_reply(FAILED, 409),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_attempt_is_made_again(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str], fault: str, stream: bool
) -> None:
    model = place({"num_workers": 2}, max_retries=1)
    upstream.script(FAULTS[fault], sse_reply(delta("a", "stop")) if stream else OK)
    answer = post(server, model, stream=stream)
    assert answer.status == 200
    assert answer.body.endswith(b"[DONE]\n\n") if stream else answer.json() == ANSWER
    assert len(upstream.requests) == 2
    assert upstream.requests[0].body == upstream.requests[1].body
    stat = detail(server, model)
    assert (sum(stat["total_requests"]), stat["requests"]["retries"]) == (1, 1)  # users' requests, not attempts
    wait_free(server, model)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("closed", 502, "upstream_broken"),
        ("garbage", 502, "upstream_broken"),
        ("huge headers", 502, "upstream_broken"),
        ("cut in the body", 502, "upstream_broken"),
        ("no first event", 502, "upstream_broken"),
        ("500", 500, "its_code"),
        ("429", 429, "its_code"),
    ],
)
def test_when_every_attempt_fails_the_last_error_is_the_answer(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str], fault: str, status: int, code: str
) -> None:
    upstream.default = FAULTS[fault]
    answer = post(server, place(max_retries=2))
    assert answer.status == status
    assert error_of(answer)["code"] == code
    assert len(upstream.requests) == 3
    wait_free(server, "m")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_the_callers_fault_is_not_tried_again_and_trips_nothing(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str], status: int
) -> None:
    upstream.default = json_reply(FAILED, status)
    model = place()
    for count in range(1, 9):
        answer = post(server, model)
        assert (answer.status, error_of(answer)["message"]) == (status, "the vendor's own words")
        assert len(upstream.requests) == count
    assert detail(server, model)["worker_state"][0]["ready"]


def test_nothing_listens(server: Byzer, place: Callable[..., str]) -> None:
    port = free_port()
    answer = post(server, place(url=f"http://127.0.0.1:{port}", max_retries=1))
    assert answer.status == 502
    assert error_of(answer)["code"] == "upstream_unreachable"
    assert f"127.0.0.1:{port}: connection refused" in error_of(answer)["message"]


def test_a_black_hole(server: Byzer, place: Callable[..., str]) -> None:
    with black_hole() as hole:
        began = time.monotonic()
        answer = post(server, place(url=hole, connect_timeout=0.2))
    assert answer.status == 504
    assert error_of(answer)["code"] == "upstream_timeout"
    assert "no connection within 0.2 s" in error_of(answer)["message"]
    assert time.monotonic() - began < 5
    wait_free(server, "m")


@pytest.mark.parametrize(
    ("params", "steps", "message"),
    [
        ({"first_byte_timeout": 0.2}, [HANG], "no answer began for 0.2 s"),
        ({"timeout": 0.2}, [HANG], "no answer began for 0.2 s"),
        ({"idle_timeout": 0.2}, [b'{"half', HANG], "the answer stood still for 0.2 s"),
        ({"total_timeout": 0.3}, [b" ", 0.1] * 50, "the whole answer took too long"),
    ],
    ids=["first byte", "timeout", "idle", "total"],
)
def test_a_stalled_answer_is_a_504_and_is_not_asked_for_again(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str], params: Any, steps: Any, message: str
) -> None:
    upstream.default = Reply(steps, headers={"content-type": "application/json"}, framing="chunked")
    answer = post(server, place(**params))
    assert answer.status == 504
    assert message in error_of(answer)["message"]
    upstream.requests[0].wait_cancelled(2)
    assert len(upstream.requests) == 1
    wait_free(server, "m")


def test_a_short_retry_after_is_waited_for_and_a_long_one_is_passed_on(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str]
) -> None:
    model = place(max_retries=2)
    upstream.script(json_reply(FAILED, 429, retry_after="0.3"), OK)
    began = time.monotonic()
    assert post(server, model).status == 200
    assert 0.3 <= time.monotonic() - began < 3
    upstream.script(json_reply(FAILED, 429, retry_after="20"))
    answer = post(server, model)
    assert (answer.status, answer.headers["retry-after"]) == (429, "20")
    assert len(upstream.requests) == 3
    assert detail(server, model)["worker_state"][0]["ready"]


def test_a_burst_of_429_is_ridden_out(server: Byzer, upstream: FakeUpstream, place: Callable[..., str]) -> None:
    model = place({"num_workers": 4}, max_retries=3)
    upstream.script(*[json_reply(FAILED, 429, retry_after="0.05")] * 8)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: post(server, model), range(8)))
    assert {a.status for a in answers} == {200}
    wait_free(server, model)


def test_a_retry_goes_to_another_worker(server: Byzer, upstream: FakeUpstream, place: Callable[..., str]) -> None:
    model = place({"num_workers": 3}, max_retries=2)
    upstream.script(json_reply(FAILED, 500), json_reply(FAILED, 500))
    assert post(server, model).headers["x-byzerllm-worker"] == "2"
    assert detail(server, model)["total_requests"] == [0, 0, 1]


def test_while_an_attempt_waits_to_be_made_again_its_slot_is_free(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str]
) -> None:
    model = place(max_retries=1)
    upstream.script(json_reply(FAILED, 429, retry_after="3"))
    with Client(server) as first:
        first.post(chat(model))
        upstream.wait_requests(1)
        began = time.monotonic()
        assert post(server, model).status == 200
        assert time.monotonic() - began < 2
        assert first.answer().status == 200


def test_a_stale_connection_is_no_error(server: Byzer, upstream: FakeUpstream, place: Callable[..., str]) -> None:
    model = place(max_retries=0)
    for _ in range(5):
        assert post(server, model).status == 200
        upstream.stop()
        upstream.start()
    upstream.script(OK, raw_reply(CLOSE))  # the second takes the kept connection and closes it unanswered
    assert [post(server, model).status for _ in range(2)] == [200, 200]
    assert detail(server, model)["errors"] == {}


# -- after the first byte -------------------------------------------------------------------------------------------

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST = b"data: %s\n\n" % json.dumps(delta("half")).encode()
ENDS = {
    "reset": (sse_reply(delta("half"), done=False, then=[RESET]), "upstream_broken", "closed the connection"),
    "closed": (sse_reply(delta("half"), done=False, then=[CLOSE]), "upstream_broken", "closed the connection"),
    "without a finish": (sse_reply(delta("half"), done=False), "upstream_broken", "ended its stream before"),
    "end of connection": (
        Reply([FIRST], headers={"content-type": "text/event-stream"}, framing="close"),
        "upstream_broken",
        "ended its stream before",
    ),
    "garbage": (
        raw_reply(CHUNKED + b"%x\r\n%s\r\n" % (len(FIRST), FIRST), 0.05, b"zz\r\n"),
        "upstream_broken",
        "not HTTP",
    ),
    "stall": (sse_reply(delta("half"), done=False, then=[HANG]), "upstream_timeout", "stood still for 0.3 s"),
    "total": (sse_reply(*[delta("half")] * 60, gap=0.1), "upstream_timeout", "took too long"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_stream_that_breaks_ends_with_an_error_that_the_client_sees(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str], end: str
) -> None:
    reply, code, message = ENDS[end]
    model = place({"num_workers": 2}, idle_timeout=0.3, total_timeout=1)
    upstream.script(reply)
    answer = post(server, model, stream=True)
    assert answer.status == 200
    assert answer.body.startswith(FIRST)
    assert b"[DONE]" not in answer.body
    error = last_event(answer)
    assert error["code"] == code
    assert message in error["message"]
    assert len(upstream.requests) == 1  # never again once something was said
    wait_free(server, model)
    stat = detail(server, model)
    assert stat["errors"] == {code: 1}
    assert stat["requests"] == {"ok": 0, "cancelled": 0, "retries": 0}


def test_a_finish_without_done_is_a_whole_answer(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str]
) -> None:
    model = place()
    upstream.script(sse_reply(delta("a"), delta("", "stop"), done=False))
    answer = post(server, model, stream=True)
    assert b'"error"' not in answer.body
    assert detail(server, model)["requests"]["ok"] == 1


def test_a_large_answer_that_breaks_is_cut_so_that_the_client_notices(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str]
) -> None:
    model = place()
    for framing in ("length", "chunked"):
        steps: list[Any] = [b"x" * 200_000, 0.1, RESET]
        headers = {"content-type": "application/json"} | ({"content-length": "400000"} if framing == "length" else {})
        upstream.script(Reply(steps, headers=headers, framing=framing))
        with Client(server) as client:
            client.post(chat(model))
            with pytest.raises(Exception, match=r"IncompleteRead|reset"):
                client.answer()
        wait_free(server, model)
    assert len(upstream.requests) == 2
    assert detail(server, model)["errors"] == {"upstream_broken": 2}


def test_a_large_answer_is_whole(server: Byzer, upstream: FakeUpstream, place: Callable[..., str]) -> None:
    model = place()
    body = json.dumps({**ANSWER, "pad": "x" * 3_000_000}).encode()
    for framing in ("length", "chunked", "close"):
        upstream.script(
            Reply([body[:70_000], 0.02, body[70_000:]], headers={"content-type": "application/json"}, framing=framing)
        )
        assert post(server, model).body == body
    assert detail(server, model)["tokens"] == {"prompt": 0, "completion": 0}  # its usage is not among its last bytes


# -- the breaker ----------------------------------------------------------------------------------------------------


def test_the_breaker_opens_says_why_and_closes_again(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str]
) -> None:
    model = place(max_retries=0)
    upstream.default = json_reply(FAILED, 500)
    for _ in range(5):
        assert post(server, model).status == 500
    refused = post(server, model)
    assert refused.status == 503
    assert error_of(refused)["code"] == "overloaded"
    assert "the vendor's own words" in error_of(refused)["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert len(upstream.requests) == 5
    assert server.json("stat", "--model", model)["state"] == [0]
    upstream.default = OK
    eventually(lambda: post(server, model).status == 200, 5, "the breaker lets a request try")
    assert server.json("stat", "--model", model)["state"] == [1]


def test_an_open_breaker_ends_the_wait_of_those_in_the_queue(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str]
) -> None:
    model = place(max_retries=0)
    go = threading.Event()
    upstream.default = json_reply(FAILED, 500, go)
    with ThreadPoolExecutor(20) as threads:
        waiting = [threads.submit(post, server, model) for _ in range(20)]
        eventually(lambda: detail(server, model)["queue"]["waiting"] == 19)
        began = time.monotonic()
        go.set()
        statuses = sorted(w.result().status for w in waiting)
    assert statuses == [500] * 5 + [503] * 15
    assert time.monotonic() - began < 5
    wait_free(server, model)


def test_what_the_vendor_said_is_told_also_when_the_breaker_opens_meanwhile(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str]
) -> None:
    model = place(max_retries=9)
    upstream.default = json_reply(FAILED, 500, retry_after="0")
    answer = post(server, model)
    assert (answer.status, error_of(answer)["code"]) == (500, "its_code")
    assert len(upstream.requests) == 5


def test_an_upstream_that_comes_back_is_used_again(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str]
) -> None:
    model = place({"num_workers": 3}, max_retries=1)
    assert post(server, model).status == 200
    upstream.stop()
    assert {post(server, model).status for _ in range(10)} <= {502, 503}
    upstream.start()
    eventually(lambda: post(server, model).status == 200, 15, "it answers again")
    assert upstream.requests[-1].json()["model"] == UPSTREAM_MODEL
