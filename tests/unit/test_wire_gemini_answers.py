"""Answers in Gemini's format: chunks, ends, errors and vectors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.events import Event, Failure, Finish, FinishReason, Reasoning, Started, Text, Tokens, ToolCall
from byzerllm.wire.gemini import Gemini

WIRE = Gemini()


def chunk(*parts: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], **more}


def events_of(*chunks: Any) -> list[Event]:
    decoder = WIRE.stream()
    events: list[Event] = []
    for each in chunks:
        events += decoder.feed(f"data: {each if isinstance(each, str) else json.dumps(each)}\r\n\r\n".encode())
    return events + decoder.close()


def failure(events: list[Event]) -> UpstreamError:
    assert isinstance(events[-1], Failure)
    return events[-1].error


def test_a_streamed_answer() -> None:
    usage = {"promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 7, "cachedContentTokenCount": 3}
    assert events_of(
        chunk(
            {"text": "hm", "thought": True}, responseId="r1", modelVersion="m", usageMetadata={"promptTokenCount": 5}
        ),
        chunk({"text": "Hi"}, {"text": ""}, responseId="r1"),
        chunk({"text": " you", "thoughtSignature": "s1"}, finish="STOP", usageMetadata=usage),
    ) == [
        Started("r1", "m"),
        Reasoning("hm"),
        Text("Hi"),
        Text(" you"),
        Reasoning("", "s1"),
        Tokens(5, 9, 3, 7),
        Finish("stop"),
    ]


def test_calls_are_numbered_and_named() -> None:
    first = {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "s1"}
    second = {"functionCall": {"id": "own", "name": "g"}}
    assert events_of(chunk(first, responseId="r1"), chunk(second, finish="STOP"))[1:] == [
        ToolCall(0, "call_r1_0", "f", '{"a": 1}', "s1"),
        ToolCall(1, "own", "g", "{}"),
        Finish("tool_calls"),
    ]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("STOP", "stop"), ("MAX_TOKENS", "length"), ("CONTINUATION", "length"), ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"), ("LANGUAGE", "content_filter"), ("BLOCKLIST", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"), ("SPII", "content_filter"), ("MODEL_ARMOR", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"), ("IMAGE_PROHIBITED_CONTENT", "content_filter"),
    ],
)  # fmt: skip
def test_why_it_ended(reason: str, expected: FinishReason) -> None:
    assert events_of({"candidates": [{"finishReason": reason}]})[1:] == [Finish(expected)]


@pytest.mark.parametrize("reason", ["MALFORMED_FUNCTION_CALL", "MISSING_THOUGHT_SIGNATURE", "OTHER", "NEW_ONE"])
def test_a_defect_of_the_answer_is_an_error(reason: str) -> None:
    events = events_of(chunk({"text": "x"}, finish=reason, usageMetadata={"promptTokenCount": 1}))
    assert events[1:-1] == [Text("x"), Tokens(1, 0)]
    assert (failure(events).vendor_code, failure(events).message) == (reason, f"Gemini stopped: {reason}")
    told = events_of({"candidates": [{"finishReason": reason, "finishMessage": "Malformed."}]})
    assert failure(told).message == "Malformed."
    assert failure(told).was_answered, "it is charged for"


def test_a_blocked_prompt_is_an_error() -> None:
    blocked: dict[str, Any] = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 4}}
    events = WIRE.events(json.dumps(blocked).encode())
    assert events[1] == Tokens(4, 0)
    error = failure(events)
    assert (error.status, error.vendor_code, error.vendor_type) == (400, "SAFETY", "content_filter")
    assert error.message == "Gemini blocked the prompt: SAFETY"
    blocked["promptFeedback"]["blockReasonMessage"] = "No."
    assert failure(events_of(blocked)).message == "No."


def test_feedback_on_a_prompt_that_was_not_blocked() -> None:
    assert events_of(chunk(finish="STOP", promptFeedback={"safetyRatings": []}))[1:] == [Finish("stop")]


def test_a_file_is_an_error() -> None:
    picture = {"inlineData": {"mimeType": "image/png", "data": "iVBO"}}
    events = events_of(chunk({"text": "Here:"}, picture, finish="STOP"))
    assert events[1] == Text("Here:")
    assert "a file" in failure(events).message
    assert failure(events).was_answered


@pytest.mark.parametrize("text", ["{", "[]", '{"candidates":7}', "\xff"])
def test_what_is_no_answer_is_an_error(text: str) -> None:
    assert isinstance(failure(events_of(text)), UpstreamBroken)
    assert isinstance(failure(WIRE.events(text.encode("latin-1"))), UpstreamBroken)


def test_a_stream_without_a_reason_to_end_is_cut_off() -> None:
    assert isinstance(failure(events_of(chunk({"text": "x"}))), UpstreamBroken)


def test_a_chunk_of_nothing_but_usage() -> None:
    assert events_of({"usageMetadata": {"promptTokenCount": 2}}, chunk(finish="STOP"))[1:] == [
        Tokens(2, 0),
        Finish("stop"),
    ]


def test_nothing_follows_the_end() -> None:
    assert events_of(chunk(finish="STOP"), chunk({"text": "x"}))[1:] == [Finish("stop")]


def test_a_whole_answer() -> None:
    body = json.dumps(chunk({"text": "Hi"}, finish="STOP", responseId="r1"), indent=2).encode()
    assert WIRE.events(body) == [Started("r1"), Text("Hi"), Finish("stop")]


# Errors


def error_body(code: int, status: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": "No.", "status": status, "details": list(details)}}


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "12.5s"}
BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID", "domain": "x"}
QUOTA = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "q"}]}


@pytest.mark.parametrize("wrap", [lambda body: body, lambda body: [body]], ids=["object", "array"])
@pytest.mark.parametrize(
    ("headers", "details", "seconds"),
    [({}, [QUOTA, RETRY], 12.5), ({}, [], None), ({"retry-after": "3"}, [RETRY], 3.0)],
)
def test_an_error(wrap: Any, headers: dict[str, str], details: list[Any], seconds: float | None) -> None:
    body = json.dumps(wrap(error_body(429, "RESOURCE_EXHAUSTED", *details))).encode()
    error = WIRE.error(429, headers, body)
    assert (error.status, error.vendor_code, error.message) == (429, "RESOURCE_EXHAUSTED", "No.")
    assert (error.retry_after, error.body) == (seconds, body)


def test_a_key_that_is_refused() -> None:
    error = WIRE.error(400, {}, json.dumps(error_body(400, "INVALID_ARGUMENT", BAD_KEY)).encode())
    assert (error.status, error.vendor_code) == (401, "API_KEY_INVALID")


def test_an_error_that_is_not_the_vendors() -> None:
    error = WIRE.error(502, {}, b"<html><h1>Bad Gateway</h1></html>")
    assert (error.status, error.message, error.vendor_code) == (502, "Bad Gateway", None)


@pytest.mark.parametrize(("code", "status"), [(503, 503), (0, 502), (14, 502)])
def test_an_error_inside_an_answer(code: int, status: int) -> None:
    body = error_body(code, "UNAVAILABLE", RETRY)
    for events in (events_of(chunk({"text": "x"}), body), WIRE.events(json.dumps(body).encode())):
        error = failure(events)
        assert (error.status, error.vendor_code, error.retry_after) == (status, "UNAVAILABLE", 12.5)


# Embeddings


def test_vectors() -> None:
    assert WIRE.embeddings(b'{"embedding":{"values":[0.5,-1]}}') == ([[0.5, -1.0]], 0)
    assert WIRE.embeddings(b'{"embeddings":[{"values":[1]},{"values":[2]}]}') == ([[1.0], [2.0]], 0)
    with pytest.raises(UpstreamBroken, match="cannot be read"):
        WIRE.embeddings(b"[]")
    with pytest.raises(UpstreamError, match=r"No\.") as found:
        WIRE.embeddings(json.dumps(error_body(404, "NOT_FOUND")).encode())
    assert (found.value.status, found.value.vendor_code) == (404, "NOT_FOUND")
