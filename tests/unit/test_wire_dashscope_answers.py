"""Answers in DashScope's own format: frames, ends, errors and vectors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.vendors import dashscope

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.dashscope import DashScope
from byzerllm.wire.events import Event, Failure, Finish, FinishReason, Reasoning, Started, Text, Tokens, ToolCall

WIRE = DashScope()


def frame(finish: str | None = "null", usage: Any = None, **message: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"output": {"choices": [choice]}, "request_id": "r1", **({"usage": usage} if usage else {})}


def stream(*data: bytes) -> list[Event]:
    decoder = WIRE.stream()
    return [event for each in data for event in decoder.feed(each)] + decoder.close()


def sse(value: Any, event: str = "result", status: str = ":HTTP_STATUS/200") -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"id:1\nevent:{event}\n{status}\ndata:{text}\n\n".encode("utf-8", "surrogateescape")


def failure(events: list[Event]) -> UpstreamError:
    assert isinstance(events[-1], Failure)
    return events[-1].error


def test_a_streamed_answer() -> None:
    last = {
        "input_tokens": 8, "output_tokens": 12, "prompt_tokens_details": {"cached_tokens": 3},
        "output_tokens_details": {"reasoning_tokens": 7},
    }  # fmt: skip
    assert stream(
        sse(frame(content="", reasoning_content="hm", usage={"input_tokens": 8, "output_tokens": 1})),
        sse(frame(content="H", reasoning_content="")),
        sse(frame("stop", content="i", usage=last)),
        sse(frame("stop", content="!")),
    ) == [Started("r1"), Reasoning("hm"), Text("H"), Text("i"), Tokens(8, 12, 3, 7), Finish("stop")]


def test_streamed_calls_are_joined_by_their_index() -> None:
    def piece(index: int | None, **fields: Any) -> dict[str, Any]:
        return {"type": "function", **({} if index is None else {"index": index}), **fields}

    assert stream(
        sse(frame(content="", tool_calls=[piece(0, id="c1", function={"name": "f", "arguments": ""})])),
        sse(frame(content="", tool_calls=[piece(0, id="", function={"name": "f", "arguments": '{"a"'})])),
        sse(
            frame(content="", tool_calls=[piece(0, function={"arguments": ":1}"}), piece(None, function={"name": "g"})])
        ),
        sse(frame("tool_calls", content="")),
    )[1:] == [
        ToolCall(0, "c1", "f"),
        ToolCall(0, arguments='{"a"'),
        ToolCall(0, arguments=":1}"),
        ToolCall(1, "call_1", "g"),
        Finish("tool_calls"),
    ]


def test_the_multimodal_path_answers_with_lists() -> None:
    script: list[Event] = [Reasoning("hm"), Text("a"), Text("b"), Tokens(1, 2), Finish("stop")]
    assert stream(dashscope.stream(script, multimodal=True))[1:] == script
    whole = WIRE.events(dashscope.answer(script, multimodal=True))
    assert whole[1:] == [Reasoning("hm"), Text("ab"), Tokens(1, 2), Finish("stop")]


@pytest.mark.parametrize(("reason", "expected"), [("stop", "stop"), ("length", "length"), ("tool_calls", "tool_calls")])
def test_why_it_ended(reason: str, expected: FinishReason) -> None:
    assert stream(sse(frame(reason, content="")))[-1] == Finish(expected)


def test_an_end_of_unknown_kind_is_an_error() -> None:
    error = failure(stream(sse(frame("exploded", content="x"))))
    assert (error.vendor_code, error.was_answered) == ("exploded", True)


@pytest.mark.parametrize("unfinished", ["null", "", None])
def test_a_stream_without_a_reason_to_end_is_cut_off(unfinished: str | None) -> None:
    assert isinstance(failure(stream(sse(frame(unfinished, content="x")))), UpstreamBroken)


def test_frames_without_choices_say_nothing() -> None:
    assert stream(sse({"request_id": "r1"}), sse({"output": {"choices": None}}), sse(frame("stop")))[1:] == [
        Finish("stop")
    ]


def test_a_part_that_is_no_text() -> None:
    events = stream(sse(frame("stop", content=[{}, {"text": "see"}, {"image": "https://x.y/a.png"}])))
    assert events[1] == Text("see")
    assert "a part of image" in failure(events).message
    assert failure(events).was_answered


@pytest.mark.parametrize("text", ["{", "[]", '{"output":7}', "\udcff"])
def test_what_is_no_answer_is_an_error(text: str) -> None:
    assert isinstance(failure(stream(sse(text))), UpstreamBroken)
    assert isinstance(failure(WIRE.events(text.encode("utf-8", "surrogateescape"))), UpstreamBroken)


# Errors


@pytest.mark.parametrize(
    ("comment", "status"),
    [
        (":HTTP_STATUS/429", 429), (": HTTP_STATUS/500 ", 500), (":HTTP_STATUS/200", 400), (":HTTP_STATUS/x", 400),
        (":HTTP_STATUS/777", 400), (": keep-alive", 400),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["error", "result"])
def test_an_error_inside_a_stream_has_the_comments_status(comment: str, status: int, name: str) -> None:
    told = {"code": "Throttling.RateQuota", "message": "Slow down.", "request_id": "r1"}
    usage = {"input_tokens": 4, "output_tokens": 1}
    events = stream(sse(frame(content="so far", usage=usage)), sse(told, name, comment))
    assert events[:-1] == [Started("r1"), Text("so far"), Tokens(4, 1)]
    error = failure(events)
    assert (error.status, error.vendor_code, error.message) == (status, "Throttling.RateQuota", "Slow down.")
    assert error.request_id == "r1"


def test_an_error_event_without_json() -> None:
    assert failure(stream(sse("gone", "error", ":HTTP_STATUS/503"))).message == "gone"


def test_an_error_instead_of_a_stream() -> None:
    body = dashscope.error_in_answer("InvalidParameter", "url error, please check url")
    for events in (stream(body), WIRE.events(body)):
        error = failure(events)
        assert (error.status, error.vendor_code) == (400, "InvalidParameter")


def test_an_error_answer() -> None:
    sent = dashscope.FAKE.error(401, "InvalidApiKey", "Invalid API-key provided.")
    error = WIRE.error(sent.status, sent.headers, sent.body)
    assert (error.status, error.vendor_code, error.message) == (401, "InvalidApiKey", "Invalid API-key provided.")
    assert error.request_id == dashscope.REQUEST_ID


# Embeddings


def test_vectors_come_in_the_order_of_the_texts() -> None:
    vectors = [{"text_index": 1, "embedding": [2.0]}, {"text_index": 0, "embedding": [1.0]}]
    body = json.dumps({"output": {"embeddings": vectors}, "usage": {"total_tokens": 4}, "request_id": "r1"}).encode()
    assert WIRE.embeddings(body) == ([[1.0], [2.0]], 4)
    with pytest.raises(UpstreamBroken, match="cannot be read"):
        WIRE.embeddings(b"[]")
    with pytest.raises(UpstreamError, match="too long"):
        WIRE.embeddings(dashscope.error_in_answer("InvalidParameter", "too long"))
