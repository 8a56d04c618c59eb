"""Streams, answers and errors in the format of OpenAI's Responses API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from byzerllm.errors import UpstreamBroken
from byzerllm.wire import translator
from byzerllm.wire.anthropic_thinking import blocks_of
from byzerllm.wire.events import Event, Failure, Finish, FinishReason, Reasoning, Started, Text, Tokens, ToolCall

WIRE = translator("responses")
MODEL = "gpt-5.2"

# Streams


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': 1, **fields})}\n\n".encode()


def delta(kind: str, text: str, place: int = 0, **fields: Any) -> bytes:
    return event(f"response.{kind}.delta", delta=text, output_index=place, **fields)


def added(place: int, **item: Any) -> bytes:
    return event("response.output_item.added", output_index=place, item=item)


def done(place: int, **item: Any) -> bytes:
    return event("response.output_item.done", output_index=place, item=item)


def end(kind: str = "completed", **fields: Any) -> bytes:
    return event(f"response.{kind}", response={"status": kind, "output": [], **fields})


START = event("response.created", response={"id": "resp_1", "model": MODEL, "status": "in_progress", "output": []})
USAGE = {"input_tokens": 9, "output_tokens": 2}


def decoded(data: bytes) -> list[Event]:
    stream = WIRE.stream()
    return [*stream.feed(data), *stream.close()]


def failed(events: list[Event]) -> Failure:
    assert [type(e) for e in events].count(Failure) == 1
    assert isinstance(events[-1], Failure)
    return events[-1]


def test_a_stream_of_text() -> None:
    data = START + delta("output_text", "A") + delta("output_text", "B") + end(usage=USAGE)
    assert decoded(data) == [Started("resp_1", MODEL), Text("A"), Text("B"), Tokens(9, 2), Finish("stop")]


def test_what_is_unknown_is_skipped() -> None:
    data = [
        START,
        event("response.in_progress", response="no object"),
        event("response.announced_later", item={"arguments": {}}, delta={"text": "x"}),
        added(0, type="tool_search_call", arguments={}),
        delta("code_interpreter_call_code", "print()"),
        delta("function_call_arguments", "{}", 7),
        done(0, type="tool_search_call", arguments={}),
        added(1, type="message", content=[]),
        done(1, type="message", content=[{"type": "output_text", "text": "B"}]),
    ]
    assert decoded(b"".join(data) + end()) == [Started("resp_1", MODEL), Finish("stop")]


def test_calls_are_counted_without_the_other_items() -> None:
    first, second = {"call_id": "c1", "name": "f"}, {"id": "fc_2", "name": "g"}
    data = [
        added(1, type="function_call", arguments="", **first),
        added(1, type="function_call", arguments="", **first),
        delta("function_call_arguments", '{"a":', 1),
        added(3, type="function_call", arguments="", **second),
        delta("function_call_arguments", "1}", 1),
        done(1, type="function_call", arguments='{"a":1}', **first),
        done(3, type="function_call", arguments='{"b":2}', **second),
        done(4, type="function_call", call_id="c3", name="h", arguments=""),
    ]
    assert decoded(b"".join(data) + end()) == [
        ToolCall(0, "c1", "f"),
        ToolCall(0, arguments='{"a":'),
        ToolCall(1, "fc_2", "g"),
        ToolCall(0, arguments="1}"),
        ToolCall(1, arguments='{"b":2}'),
        ToolCall(2, "c3", "h"),
        ToolCall(2, arguments="{}"),
        Finish("tool_calls"),
    ]


def test_reasoning_is_told_in_paragraphs() -> None:
    data = [
        delta("reasoning_summary_text", "A", summary_index=0),
        delta("reasoning_summary_text", "B", summary_index=0),
        delta("reasoning_summary_text", "C", summary_index=1),
        delta("reasoning_text", "D", 2),
    ]
    texts = [Reasoning("A"), Reasoning("B"), Reasoning("\n\nC"), Reasoning("\n\nD")]
    assert decoded(b"".join(data) + end()) == [*texts, Finish("stop")]


def test_encrypted_reasoning_is_kept_as_a_signature() -> None:
    blocks = [{"type": "reasoning", "id": f"rs_{n}", "encrypted_content": "xyz"} for n in (1, 2)]
    data = [done(n, **block, summary=[]) for n, block in enumerate(blocks)]
    data.append(done(2, type="reasoning", id="rs_3", summary=[], encrypted_content=None))
    events = decoded(b"".join(data) + end())
    assert [e.text for e in events if isinstance(e, Reasoning)] == ["", ""]
    assert [blocks_of("", e.signature) for e in events if isinstance(e, Reasoning)] == [blocks[:1], blocks]


def test_a_refusal_is_text_that_is_not_the_answer() -> None:
    assert decoded(delta("refusal", "No.") + end()) == [Text("No."), Finish("content_filter")]


@pytest.mark.parametrize(
    ("details", "finish"),
    [
        ({"reason": "max_output_tokens"}, "length"),
        ({"reason": "content_filter"}, "content_filter"),
        ({"reason": "announced_later"}, "length"),
        (None, "length"),
    ],
)
def test_an_answer_may_be_incomplete(details: dict[str, str] | None, finish: FinishReason) -> None:
    fields: dict[str, Any] = {"incomplete_details": details, "usage": USAGE}
    assert decoded(end("incomplete", **fields)) == [Tokens(9, 2), Finish(finish)]
    assert WIRE.events(json.dumps({"status": "incomplete", **fields}).encode())[-1] == Finish(finish)


def test_usage_counts_what_was_cached_and_thought() -> None:
    details = {"input_tokens_details": {"cached_tokens": 5}, "output_tokens_details": {"reasoning_tokens": 1}}
    assert decoded(end(usage={**USAGE, **details}))[0] == Tokens(9, 2, cached=5, reasoning=1)
    empty: dict[str, Any] = {"input_tokens_details": {}, "output_tokens_details": None}
    assert decoded(end(usage={**USAGE, **empty}))[0] == Tokens(9, 2)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("rate_limit_exceeded", 429),
        ("server_error", 500),
        ("invalid_prompt", 400),
        (429, 429),
        ("announced_later", 502),
        (None, 502),
    ],
)
def test_a_response_that_failed(code: str | int | None, status: int) -> None:
    error = {"code": code, "message": "It did not work."}
    for events in (
        decoded(START + end("failed", error=error, usage=USAGE) + delta("output_text", "A")),
        WIRE.events(json.dumps({"status": "failed", "error": error}).encode()),
    ):
        found = failed(events).error
        assert (found.status, found.vendor_code, found.message) == (status, code, "It did not work.")


@pytest.mark.parametrize("inside", [False, True])
def test_an_error_event_ends_the_stream(inside: bool) -> None:
    fields = {"code": "rate_limit_exceeded", "message": "Slow down", "param": None}
    nested = {"error": {"type": "tokens", **fields}} if inside else fields
    found = failed(decoded(START + event("error", **nested) + delta("output_text", "A") + end())).error
    assert (found.status, found.vendor_code, found.message) == (429, "rate_limit_exceeded", "Slow down")
    assert found.vendor_type == ("tokens" if inside else None)


@pytest.mark.parametrize(
    "data",
    [
        START,
        START + delta("output_text", "A"),
        START + b"data: {nonsense\n\n" + end(),
        START + event("response.completed", response={"output": "text"}),
        START + added(0, type="function_call", name=1) + end(),
        START + b"data: [DONE]\n\n",
        START + event("response.failed", response={"status": "failed"}),
    ],
    ids=["nothing", "no end", "no JSON", "an end in another form", "a call in another form", "DONE", "no reason"],
)
def test_a_stream_that_is_not_whole_fails(data: bytes) -> None:
    assert isinstance(failed(decoded(data)).error, UpstreamBroken)


def test_the_last_event_may_lack_its_empty_line() -> None:
    assert decoded((START + end()).rstrip()) == decoded(START + end())


def test_a_body_in_place_of_a_stream_is_understood() -> None:
    found = failed(decoded(b'{"error": {"message": "No.", "code": "server_error"}}')).error
    assert (found.status, found.message) == (500, "No.")


# Answers and errors


def test_a_whole_answer() -> None:
    output = [
        {"type": "reasoning", "id": "rs_1", "summary": [{"text": "A"}, {"text": "B"}], "encrypted_content": None},
        {"type": "reasoning", "id": "rs_2", "summary": [], "content": [{"type": "reasoning_text", "text": "C"}]},
        {"type": "announced_later", "content": "text"},
        {"type": "message", "content": [{"type": "output_text", "text": "ü"}, {"type": "output_text", "text": ""}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":"ü"}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
    ]
    answer = {"id": "resp_1", "model": MODEL, "status": "completed", "error": None, "output": output, "usage": USAGE}
    assert WIRE.events(json.dumps(answer).encode()) == [
        Started("resp_1", MODEL),
        Reasoning("A"),
        Reasoning("\n\nB"),
        Reasoning("\n\nC"),
        Text("ü"),
        ToolCall(0, "c1", "f"),
        ToolCall(0, arguments='{"a":"ü"}'),
        ToolCall(1, "c2", "g"),
        ToolCall(1, arguments="{}"),
        Tokens(9, 2),
        Finish("tool_calls"),
    ]


def test_a_whole_refusal() -> None:
    content = [{"type": "refusal", "refusal": "No."}]
    answer = {"status": "completed", "output": [{"type": "message", "content": content}]}
    assert WIRE.events(json.dumps(answer).encode())[1:] == [Text("No."), Finish("content_filter")]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"output": [1]}', b'{"status": "queued"}'])
def test_an_answer_that_is_none_fails(body: bytes) -> None:
    assert isinstance(failed(WIRE.events(body)).error, UpstreamBroken)


def test_an_error_answer() -> None:
    body = b'{"error":{"message":"Bad model","type":"invalid_request_error","param":"model","code":"model_not_found"}}'
    found = WIRE.error(404, {"x-request-id": "req_1", "retry-after": "7"}, body)
    assert (found.status, found.message, found.request_id, found.retry_after) == (404, "Bad model", "req_1", 7)
    assert (found.vendor_code, found.vendor_type, found.param) == ("model_not_found", "invalid_request_error", "model")
