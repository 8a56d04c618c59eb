"""Answers of Bedrock: what each block, event, frame and error means."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.vendors.bedrock import FAKE, MODEL, REQUEST_ID, event, exception, frame

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.base import Task, Vendor, decode_request
from byzerllm.wire.bedrock import BedrockConverse
from byzerllm.wire.events import Event, Failure, Finish, Reasoning, Text, Tokens, ToolCall

WIRE = BedrockConverse()


# Embeddings


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"embedding": [0.5, 1], "inputTextTokenCount": 3}, ([[0.5, 1.0]], 3)),
        ({"embeddings": [[1.0], [2.0]], "id": "x", "response_type": "embeddings_floats"}, ([[1.0], [2.0]], 0)),
        ({"embeddings": {"float": [[1.0]], "int8": [[3]]}, "response_type": "embeddings_by_type"}, ([[1.0]], 0)),
    ],
)
def test_vectors(answer: dict[str, Any], expected: object) -> None:
    assert WIRE.embeddings(json.dumps(answer).encode()) == expected


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"message":"no"}', b'{"embeddings":{"int8":[[1]]}}'])
def test_an_answer_without_vectors(answer: bytes) -> None:
    with pytest.raises(UpstreamBroken, match="no embeddings"):
        WIRE.embeddings(answer)


# Whole answers


def test_a_whole_answer() -> None:
    script: list[Event] = [
        Reasoning("hm"),
        Reasoning("", "sig"),
        Text("Hi"),
        ToolCall(0, "c1", "f", '{"x":1}'),
        ToolCall(1, "c2", "g", "{}"),
        Tokens(9, 2, cached=4),
        Finish("tool_calls"),
    ]
    assert WIRE.events(FAKE.answer(script)) == script


def test_blocks_of_a_whole_answer_that_say_nothing_here() -> None:
    content: list[Any] = [{"citationsContent": {}}, {"text": ""}, {"reasoningContent": {}}]
    answer = {"output": {"message": {"role": "assistant", "content": content}}, "stopReason": "end_turn"}
    assert WIRE.events(json.dumps(answer).encode()) == [Finish("stop")]


def test_written_tokens_are_the_prompts_too() -> None:
    usage = {"inputTokens": 5, "outputTokens": 2, "cacheReadInputTokens": 3, "cacheWriteInputTokens": 7}
    answer = {"output": {}, "stopReason": "max_tokens", "usage": usage}
    assert WIRE.events(json.dumps(answer).encode()) == [Tokens(15, 2, cached=3), Finish("length")]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"),
        ("model_context_window_exceeded", "length"), ("content_filtered", "content_filter"),
        ("guardrail_intervened", "content_filter"), ("something_new", "stop"),
    ],
)  # fmt: skip
def test_stop_reasons(reason: str, expected: str) -> None:
    assert WIRE.events(json.dumps({"stopReason": reason}).encode())[-1] == Finish(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"output":{}}', b'{"stopReason":1}'])
def test_what_is_no_answer(body: bytes) -> None:
    [failed] = WIRE.events(body)
    assert isinstance(failed, Failure)
    assert isinstance(failed.error, UpstreamBroken)


@pytest.mark.parametrize("reason", ["malformed_model_output", "malformed_tool_use"])
def test_an_answer_that_the_model_spoiled(reason: str) -> None:
    [whole] = WIRE.events(json.dumps({"stopReason": reason}).encode())
    *_, streamed = decode(event("messageStop", stopReason=reason) + event("contentBlockStop", contentBlockIndex=0))
    for failed in (whole, streamed):
        assert isinstance(failed, Failure)
        assert (failed.error.status, failed.error.vendor_code) == (502, reason)


# Streams


def decode(data: bytes) -> list[Event]:
    decoder = WIRE.stream()
    return decoder.feed(data) + decoder.close()


def test_a_stream() -> None:
    script: list[Event] = [
        Reasoning("hm"),
        Reasoning("", "sig"),
        Text("H"),
        Text("é"),
        ToolCall(0, "c1", "f"),
        ToolCall(0, arguments='{"x"'),
        ToolCall(0, arguments=":1}"),
        ToolCall(1, "c2", "g"),
        ToolCall(1, arguments="{}"),
        Finish("tool_calls"),
        Tokens(9, 2, cached=4),
    ]
    assert decode(FAKE.stream(script)) == script


def test_a_call_without_input_gets_an_empty_object() -> None:
    script: list[Event] = [ToolCall(0, "c1", "f"), Finish("tool_calls")]
    assert decode(FAKE.stream(script)) == [ToolCall(0, "c1", "f"), ToolCall(0, arguments="{}"), Finish("tool_calls")]


def test_what_a_stream_says_that_nothing_is_made_of() -> None:
    data = (
        event("contentBlockStart", contentBlockIndex=0, start={"image": {"format": "png"}})
        + event("contentBlockDelta", contentBlockIndex=0, delta={"image": {"source": {"bytes": "AAAA"}}})
        + event("contentBlockDelta", contentBlockIndex=1, delta={"toolUse": {"input": "{}"}})
        + event("contentBlockDelta", contentBlockIndex=2, delta={"reasoningContent": {"text": "hm"}})
        + event("contentBlockStop", contentBlockIndex=2)
        + event("contentBlockDelta", contentBlockIndex=3, delta={"citation": {"title": "t"}})
        + event("inventedLater", x=1)
        + event("messageStop", stopReason="end_turn")
        + event("metadata", metrics={"latencyMs": 1})
    )
    assert decode(data) == [Reasoning("hm"), Finish("stop")]


def test_reasoning_of_several_blocks_goes_back_as_it_came() -> None:
    content: list[dict[str, Any]] = [
        {"reasoningContent": {"reasoningText": {"text": "a", "signature": "s1"}}},
        {"reasoningContent": {"redactedContent": "AAAA"}},
        {"reasoningContent": {"reasoningText": {"text": "b", "signature": "s2"}}},
    ]
    answer = {"output": {"message": {"role": "assistant", "content": content}}, "stopReason": "end_turn"}
    deltas = [
        [{"text": "a"}, {"signature": "s"}, {"signature": "1"}],
        [{"redactedContent": "AAAA"}],
        [{"text": "b"}, {"signature": "s2"}],
    ]
    data = b"".join(
        b"".join(event("contentBlockDelta", contentBlockIndex=n, delta={"reasoningContent": d}) for d in block)
        + event("contentBlockStop", contentBlockIndex=n)
        for n, block in enumerate(deltas)
    )
    streamed = decode(data + event("messageStop", stopReason="end_turn"))
    assert WIRE.events(json.dumps(answer).encode()) == streamed
    pieces = [e for e in streamed if isinstance(e, Reasoning)]
    message = {
        "role": "assistant",
        "reasoning_content": "".join(p.text for p in pieces),
        "reasoning_signature": [p.signature for p in pieces if p.signature][-1],
    }
    request = decode_request(Task.CHAT, json.dumps({"model": "m", "messages": [message]}).encode())
    assert json.loads(WIRE.request(request, Vendor(MODEL)).body)["messages"][0]["content"] == content


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("internalServerException", 500), ("modelStreamErrorException", 424), ("validationException", 400),
        ("throttlingException", 429), ("serviceUnavailableException", 503), ("inventedLaterException", 500),
    ],
)  # fmt: skip
def test_an_exception_in_a_stream(kind: str, status: int) -> None:
    text = event("contentBlockDelta", contentBlockIndex=0, delta={"text": "Hi"})
    said, failed = decode(text + exception(kind, "slow down") + text)
    assert said == Text("Hi")
    assert isinstance(failed, Failure)
    error = failed.error
    assert (error.message, error.status, error.vendor_code) == ("slow down", status, kind)


def test_an_error_frame_has_its_message_in_a_header() -> None:
    headers = {":message-type": "error", ":error-code": "InternalError", ":error-message": "it broke"}
    decoder = WIRE.stream()
    [failed] = decoder.feed(frame(headers, b""))
    assert isinstance(failed, Failure)
    assert (failed.error.message, failed.error.vendor_code, failed.error.status) == ("it broke", "InternalError", 500)
    assert decoder.feed(event("messageStop", stopReason="end_turn")) == []


def test_an_exception_without_a_name() -> None:
    [failed] = decode(frame({}, b'{"message":"odd","code":"C"}'))
    assert isinstance(failed, Failure)
    assert (failed.error.message, failed.error.vendor_code) == ("odd", "C")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "without messageStop"),
        (event("messageStart", role="assistant"), "without messageStop"),
        (event("messageStop", stopReason="end_turn")[:-1], "inside a frame"),
        (frame({":message-type": "event", ":event-type": "metadata"}, b"{"), "what is no event"),
        (event("messageStart", role="assistant")[:-1] + b"\x00", "checksum"),
        (b"<html>502 Bad Gateway</html>", "checksum"),
    ],
)
def test_a_stream_that_is_broken(data: bytes, words: str) -> None:
    [failed] = decode(data)
    assert isinstance(failed, Failure)
    assert isinstance(failed.error, UpstreamBroken)
    assert words in failed.error.message


def test_a_stream_is_whole_without_its_usage() -> None:
    assert decode(event("messageStop", stopReason="end_turn")) == [Finish("stop")]


# Errors


def test_an_error_has_its_code_in_a_header() -> None:
    answer = FAKE.error(429, "ThrottlingException", "Too many requests")
    headers = {name.lower(): value for name, value in answer.headers.items()}
    error = WIRE.error(answer.status, headers, answer.body)
    assert isinstance(error, UpstreamError)
    assert (error.status, error.message, error.vendor_code, error.request_id) == (
        429,
        "Too many requests",
        "ThrottlingException",
        REQUEST_ID,
    )


def test_an_error_of_a_gateway_before_bedrock() -> None:
    error = WIRE.error(403, {}, b'{"Message":"User is not authorized"}')
    assert (error.status, error.message, error.vendor_code, error.request_id) == (
        403,
        "User is not authorized",
        None,
        None,
    )
