"""Streams, answers and errors in Anthropic's Messages format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from byzerllm.errors import UpstreamBroken
from byzerllm.wire import translator
from byzerllm.wire.anthropic_thinking import blocks_of
from byzerllm.wire.events import Event, Failure, Finish, FinishReason, Reasoning, Started, Text, Tokens, ToolCall

WIRE = translator("anthropic")
MODEL = "claude-haiku-4-5-20251001"


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


# Streams


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def block(index: int, begun: dict[str, Any], *deltas: dict[str, Any]) -> bytes:
    pieces = [event("content_block_delta", index=index, delta=d) for d in deltas]
    start = event("content_block_start", index=index, content_block=begun)
    return start + b"".join(pieces) + event("content_block_stop", index=index)


def arguments(text: str) -> dict[str, Any]:
    return {"type": "input_json_delta", "partial_json": text}


START = event(
    "message_start", message={"id": "msg_1", "model": MODEL, "usage": {"input_tokens": 9, "output_tokens": 1}}
)
STOP = event("message_stop")


def end(reason: str | None = "end_turn", **usage: Any) -> bytes:
    return event("message_delta", delta={"stop_reason": reason}, usage={"output_tokens": 2, **usage}) + STOP


def decoded(data: bytes) -> list[Event]:
    stream = WIRE.stream()
    return [*stream.feed(data), *stream.close()]


def failed(events: list[Event]) -> Failure:
    assert [type(e) for e in events].count(Failure) == 1
    assert isinstance(events[-1], Failure)
    return events[-1]


def test_a_stream_of_text() -> None:
    begun = {"type": "text", "text": "A"}
    text_block = block(0, begun, {"type": "text_delta", "text": "B"}, {"type": "text_delta", "text": ""})
    assert decoded(START + event("ping") + text_block + end()) == [
        Started("msg_1", MODEL),
        Text("A"),
        Text("B"),
        Tokens(9, 2),
        Finish("stop"),
    ]


def test_unknown_events_deltas_and_blocks_are_skipped() -> None:
    data = [
        START,
        event("new_event", delta="no object", index="x"),
        block(0, {"type": "text", "text": ""}, {"type": "citations_delta", "citation": {}}, {"type": "new_delta"}),
        block(1, {"type": "server_tool_use", "id": "s1", "name": "web_search"}, arguments("{}")),
        block(2, {"type": "thinking", "thinking": ""}, {"type": "thinking_delta", "thinking": ""}),
        event("content_block_delta", index=7, delta=arguments("{}")),
        event("content_block_delta", index=7, delta=None),
        event("content_block_start", index=7),
        event("content_block_stop", index=7),
        event("message_start"),
        event("message_delta"),
        event("message_delta", delta={"stop_reason": None}),
    ]
    assert decoded(b"".join(data) + end()) == [Started("msg_1", MODEL), Tokens(9, 2), Finish("stop")]


def test_calls_are_counted_without_the_other_blocks() -> None:
    first = block(1, {"type": "tool_use", "id": "c1", "name": "f", "input": {}}, arguments(""), arguments('{"a":1}'))
    second = block(2, {"type": "tool_use", "id": "c2", "name": "g", "input": {}}, arguments(""))
    third = block(3, {"type": "tool_use", "id": "c3", "name": "h", "input": {"b": 2}})
    text_block = block(0, {"type": "text"}, {"type": "text_delta", "text": "A"})
    assert decoded(START + text_block + first + second + third + end("tool_use"))[2:] == [
        ToolCall(0, "c1", "f"),
        ToolCall(0, arguments='{"a":1}'),
        ToolCall(1, "c2", "g"),
        ToolCall(1, arguments="{}"),
        ToolCall(2, "c3", "h", '{"b":2}'),
        Tokens(9, 2),
        Finish("tool_calls"),
    ]


def thought(index: int, text: str, signature: str) -> bytes:
    pieces = [{"type": "thinking_delta", "thinking": text}, {"type": "signature_delta", "signature": signature}]
    return block(index, {"type": "thinking", "thinking": "", "signature": ""}, *pieces)


def test_thinking_and_its_signature_come_out_and_go_back() -> None:
    events = decoded(START + thought(0, "Hm", "c2ln") + end())
    assert events[1:3] == [Reasoning("Hm"), Reasoning("", "c2ln")]
    assert blocks_of("Hm", "c2ln") == [{"type": "thinking", "thinking": "Hm", "signature": "c2ln"}]


def test_thinking_whose_text_is_omitted_keeps_its_signature() -> None:
    events = decoded(START + thought(0, "", "c2ln") + end())
    assert events[1] == Reasoning("", "c2ln")
    assert blocks_of("", "c2ln") == [{"type": "thinking", "thinking": "", "signature": "c2ln"}]


def test_several_thinking_blocks_survive_in_one_signature() -> None:
    redacted = block(1, {"type": "redacted_thinking", "data": "xyz"})
    events = decoded(START + thought(0, "One", "c2ln") + redacted + thought(2, "Two", "c2lu") + end())
    signatures = [e.signature for e in events if isinstance(e, Reasoning) and e.signature]
    assert len(signatures) == 3
    for kept in (signatures[-1], "".join(signatures)):  # clients keep the last one, or join them
        assert blocks_of("OneTwo", kept) == [
            {"type": "thinking", "thinking": "One", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "xyz"},
            {"type": "thinking", "thinking": "Two", "signature": "c2lu"},
        ]


def test_redacted_thinking_alone_goes_back() -> None:
    events = decoded(START + block(0, {"type": "redacted_thinking", "data": "xyz"}) + end())
    assert isinstance(events[1], Reasoning)
    assert blocks_of(events[1].text, events[1].signature) == [{"type": "redacted_thinking", "data": "xyz"}]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("announced_later", "stop"),
    ],
)
def test_why_it_ended(reason: str, finish: FinishReason) -> None:
    assert decoded(START + end(reason))[-1] == Finish(finish)
    assert WIRE.events(json.dumps({"stop_reason": reason}).encode())[-1] == Finish(finish)


def test_usage_counts_what_was_cached_and_thought() -> None:
    usage = {"input_tokens": 9, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 1000, "output_tokens": 1}
    start = event("message_start", message={"usage": usage})
    last = end(input_tokens=10, cache_read_input_tokens=None, output_tokens_details={"thinking_tokens": 1})
    assert decoded(start + last)[1] == Tokens(1110, 2, cached=1000, reasoning=1)


def test_an_error_in_the_stream_ends_it() -> None:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    data = START + event("error", error=error, request_id="req_1") + block(0, text("A")) + end()
    found = failed(decoded(data)).error
    assert (found.status, found.vendor_code, found.message, found.request_id) == (
        529,
        "overloaded_error",
        "Overloaded",
        "req_1",
    )


@pytest.mark.parametrize("kind", ["announced_later", None])
def test_an_error_of_an_unknown_type_is_a_bad_gateway(kind: str | None) -> None:
    assert failed(decoded(event("error", error={"type": kind, "message": "?"}))).error.status == 502


@pytest.mark.parametrize(
    "data",
    [
        START,
        START + end()[: -len(STOP)],
        START + event("content_block_delta", index="x"),
        START + b"data: {nonsense\n\n" + end(),
        START + end(None),
    ],
    ids=["nothing", "no message_stop", "a known event in another form", "no JSON", "no reason"],
)
def test_a_stream_that_is_not_whole_fails(data: bytes) -> None:
    assert isinstance(failed(decoded(data)).error, UpstreamBroken)


def test_the_last_event_may_lack_its_empty_line() -> None:
    assert decoded((START + end()).rstrip()) == decoded(START + end())


# Answers and errors


def test_a_whole_answer() -> None:
    content = [
        {"type": "thinking", "thinking": "Hm", "signature": "c2ln"},
        {"type": "text", "text": "A", "citations": None},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": "ü"}},
        {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
        {"type": "announced_later", "content": []},
    ]
    answer = {
        "id": "msg_1",
        "model": MODEL,
        "content": content,
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3},
    }
    assert WIRE.events(json.dumps({"type": "message", **answer}).encode()) == [
        Started("msg_1", MODEL),
        Reasoning("Hm"),
        Reasoning("", "c2ln"),
        Text("A"),
        ToolCall(0, "c1", "f", '{"a":"ü"}'),
        ToolCall(1, "c2", "g"),
        ToolCall(1, arguments="{}"),
        Tokens(3, 0),
        Finish("tool_calls"),
    ]


def test_an_answer_that_is_none_fails() -> None:
    for body in (b"<html>", b"[]", b'{"content": "text"}'):
        assert isinstance(failed(WIRE.events(body)).error, UpstreamBroken)
    error = b'{"type":"error","error":{"type":"rate_limit_error","message":"Slow down"}}'
    assert failed(WIRE.events(error)).error.status == 429


def test_an_error_answer() -> None:
    error = {"type": "rate_limit_error", "message": "Slow down", "details": {"error_code": "ramp_limit_exceeded"}}
    body = json.dumps({"type": "error", "error": error, "request_id": "req_body"}).encode()
    found = WIRE.error(429, {"request-id": "req_head", "retry-after": "7"}, body)
    assert (found.status, found.message, found.request_id, found.retry_after) == (429, "Slow down", "req_head", 7)
    assert (found.vendor_type, found.vendor_code) == ("rate_limit_error", "ramp_limit_exceeded")
    assert WIRE.error(429, {}, body).request_id == "req_body"


def test_an_error_without_details_or_json() -> None:
    body = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
    assert WIRE.error(529, {}, body).vendor_code == "overloaded_error"
    assert WIRE.error(502, {}, b"<html>Bad gateway</html>").message == "Bad gateway"
