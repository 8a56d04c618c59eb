"""OpenAI's format: vendors' error bodies, tokens and the end of a stream from its last bytes, errors for clients."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.errors import (
    ByzerError,
    InvalidInput,
    ModelNotFound,
    UpstreamError,
    UpstreamTimeout,
    error_types,
    from_payload,
)
from byzerllm.wire import ENGINE_WIRES, WIRES
from byzerllm.wire.base import StreamEnd, Task, Usage, decode_request
from byzerllm.wire.openai import (
    DONE,
    error_body,
    error_event,
    error_object,
    internal_error,
    parse_error,
    retry_after,
)

OPENAI = WIRES["openai"]


def test_paths_and_body() -> None:
    assert OPENAI.name == "openai"
    assert [OPENAI.path(task) for task in Task] == [
        "/chat/completions", "/completions", "/embeddings", "/rerank", "/score", "/responses",
        "/audio/speech", "/audio/transcriptions", "/images/generations", None, None,
    ]  # fmt: skip
    assert [ENGINE_WIRES["engine"].path(task) for task in (Task.CHAT, Task.TOKENIZE, Task.DETOKENIZE)] == [
        "/v1/chat/completions", "/tokenize", "/detokenize",
    ]  # fmt: skip
    assert OPENAI.body(decode_request(Task.CHAT, b'{"model":"m","x":1.10}'), "y", {}) == b'{"model":"y","x":1.10}'


def test_the_owners_effort_has_another_name_in_responses() -> None:
    defaults = {"reasoning_effort": msgspec.Raw(b'"low"'), "top_k": msgspec.Raw(b"4")}
    asked = decode_request(Task.RESPONSES, b'{"model":"m","input":"x"}')
    assert OPENAI.body(asked, "y", defaults) == b'{"reasoning":{"effort":"low"},"top_k":4,"model":"y","input":"x"}'
    own = decode_request(Task.RESPONSES, b'{"model":"m","reasoning":{"effort":"high"}}')
    assert OPENAI.body(own, "y", defaults) == b'{"reasoning":{"effort":"high"},"top_k":4,"model":"y"}'
    chat = decode_request(Task.CHAT, b'{"model":"m"}')
    assert OPENAI.body(chat, "y", defaults) == b'{"reasoning_effort":"low","top_k":4,"model":"y"}'


# -- a vendor's error -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message", "code", "kind"),
    [
        pytest.param(
            b'{"error":{"message":"No such model","type":"invalid_request_error","param":"model","code":"m404"}}',
            "No such model", "m404", "invalid_request_error", id="openai",
        ),
        pytest.param(b'{"error":{"code":"1302","message":"busy"}}', "busy", "1302", None, id="zhipu"),
        pytest.param(b'[{"error":{"code":429,"message":"slow down"}}]', "slow down", 429, None, id="gemini"),
        pytest.param(b'"Invalid token"', "Invalid token", None, None, id="a bare string"),
        pytest.param(b'{"code":20012,"message":"gone","data":null}', "gone", 20012, None, id="siliconflow"),
        pytest.param(b'{"object":"error","message":"m","type":"T","code":400}', "m", 400, "T", id="vllm"),
        pytest.param(b'{"error":null,"message":"x"}', "x", None, None, id="error is null"),
        pytest.param(b'{"error":"invalid_client","error_description":"bad id"}', "bad id", "invalid_client", None,
                     id="oauth"),
        pytest.param(b'{"error":"model \'x\' not found"}', "model 'x' not found", "model 'x' not found", None,
                     id="ollama"),
        pytest.param(b'{"detail":"Not Found"}', "Not Found", None, None, id="fastapi"),
        pytest.param(b'{"detail":[{"loc":["body"]}]}', '{"detail":[{"loc":["body"]}]}', None, None,
                     id="fastapi validation"),
        pytest.param(b'{"base_resp":{"status_code":1008,"status_msg":"no balance"}}', "no balance", 1008, None,
                     id="minimax"),
        pytest.param(b'{"error_code":18,"error_msg":"qps limit"}', "qps limit", 18, None, id="baidu"),
        pytest.param(b'{"unknown":"shape"}', '{"unknown":"shape"}', None, None, id="unknown shape"),
        pytest.param(b'{"error":{"msg":"other words"}}', '{"error":{"msg":"other words"}}', None, None,
                     id="an error without a message"),
        pytest.param(b'{"error":{"message":"m","code":{"a":1},"type":["t"],"param":7}}', "m", None, None,
                     id="fields of the wrong kind"),
        pytest.param(b"[1,2]", "[1,2]", None, None, id="a list"),
        pytest.param(b"7", "7", None, None, id="a number"),
        pytest.param(b"upstream  request\n timeout", "upstream request timeout", None, None, id="plain text"),
        pytest.param(b"<html><head><style>p {}</style></head><body><h1>502</h1>Bad Gateway</body></html>",
                     "502 Bad Gateway", None, None, id="html"),
        pytest.param(b'{"error":{"message":"\xb4\xed"}}', '{"error":{"message":"\ufffd\ufffd"}}', None, None,
                     id="not utf-8"),
        pytest.param(b"[" * 200_000, "[" * 4000, None, None, id="too deep"),
        pytest.param(b"", "the upstream answered with status 418 and no message", None, None, id="empty"),
        pytest.param(b'""', '""', None, None, id="an empty string"),
    ],
)  # fmt: skip
def test_the_vendors_own_words_are_kept(body: bytes, message: str, code: object, kind: str | None) -> None:
    error = OPENAI.error(418, {}, body)
    assert error.message == message
    assert (error.status, error.vendor_code, error.vendor_type) == (418, code, kind)
    assert error.body == body[: 64 * 1024]


def test_a_long_message_is_cut_and_a_param_is_kept() -> None:
    error = parse_error(400, {}, json.dumps({"error": {"message": "x" * 9000, "param": "messages"}}).encode())
    assert (len(error.message), error.param) == (4000, "messages")


@pytest.mark.parametrize(
    ("headers", "body", "request_id"),
    [
        ({"x-request-id": "a", "request-id": "b"}, b'{"error":{"message":"m","request_id":"d"}}', "a"),
        ({"request-id": "b"}, b"", "b"),
        ({}, b'{"request_id":"c","error":{"message":"m"}}', "c"),
        ({}, b'{"request_id":"c","error":{"message":"m","request_id":"d"}}', "d"),
        ({}, b'{"request_id":7,"error":{"message":"m"}}', None),
    ],
)
def test_the_vendors_request_id(headers: Mapping[str, str], body: bytes, request_id: str | None) -> None:
    assert parse_error(500, headers, body).request_id == request_id


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "86400"}, None),
    ],
)
def test_retry_after(headers: Mapping[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds
    assert parse_error(429, headers, b"").retry_after == seconds


@given(st.binary(max_size=200))
def test_no_body_breaks_the_parser(body: bytes) -> None:
    assert parse_error(500, {}, body).message


# -- the last bytes ---------------------------------------------------------------------------------------------------

CHUNK = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}],"usage":null}\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason": "stop"}]}\n\n'


@pytest.mark.parametrize(
    ("tail", "usage"),
    [
        (b"", None),
        (CHUNK + LAST + DONE, None),
        (b'"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}', Usage(9, 2)),
        (b'"usage" : { "completion_tokens" : 2, "prompt_tokens" : 9 }', Usage(9, 2)),
        (b'"usage":{"prompt_tokens":5,"total_tokens":5}', Usage(5, 0)),
        (b'{"prompt_tokens":1,"completion_tokens":1}\n{"prompt_tokens":1,"completion_tokens":7}', Usage(1, 7)),
        (b'"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}', Usage(9, 2)),
        (b'"content":"say \\"prompt_tokens\\": 77"', None),
        (b'"timings":{"cache_n":3,"prompt_n":4,"prompt_ms":1.5,"predicted_n":6,"predicted_ms":2.0}', Usage(7, 6)),
        (b'"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":4},"output_tokens":2}', Usage(9, 2)),
        (b'"meta":{"tokens":{"input_tokens":28}}', Usage(28, 0)),
    ],
)
def test_tokens(tail: bytes, usage: Usage | None) -> None:
    assert OPENAI.usage(tail) == usage


@pytest.mark.parametrize(
    ("tail", "end"),
    [
        (CHUNK + LAST + DONE, StreamEnd.COMPLETE),
        (CHUNK + b"data:[DONE]", StreamEnd.COMPLETE),
        (CHUNK + b"data: [DONE]\r\n\r\n", StreamEnd.COMPLETE),
        (CHUNK + LAST, StreamEnd.COMPLETE),
        (CHUNK, StreamEnd.TRUNCATED),
        (b"", StreamEnd.TRUNCATED),
        (CHUNK[:-20], StreamEnd.TRUNCATED),
        (b'data: {"choices":[{"finish_reason":""}]}\n\n', StreamEnd.TRUNCATED),
        (b'data: {"choices":[{"delta":{"content":"\\"finish_reason\\":\\"stop\\""}}]}\n\n', StreamEnd.TRUNCATED),
        (CHUNK + b'data: {"error":{"message":"overloaded"}}\n\n', StreamEnd.ERROR),
        (CHUNK + b'event: error\r\ndata:{ "error": "overloaded"}\r\n\r\n' + DONE, StreamEnd.ERROR),
        (b'data: {"error":null,"choices":[{"finish_reason":"stop"}]}\n\n' + DONE, StreamEnd.COMPLETE),
        (b'data: {"choices":[{"delta":{"content":"data: {\\"error\\":{"}}]}\n\n' + DONE, StreamEnd.COMPLETE),
    ],
)
def test_the_end_of_a_stream(tail: bytes, end: StreamEnd) -> None:
    assert OPENAI.stream_end(tail, Task.CHAT) is end


def typed(kind: str, **fields: str) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), json.dumps({"type": kind, **fields}).encode())


@pytest.mark.parametrize(
    ("tail", "task", "end"),
    [
        (typed("response.created") + typed("response.completed"), Task.RESPONSES, StreamEnd.COMPLETE),
        (typed("x") + typed("response.incomplete").replace(b"\n", b"\r\n"), Task.RESPONSES, StreamEnd.COMPLETE),
        (typed("response.created") + typed("response.failed"), Task.RESPONSES, StreamEnd.ERROR),
        (typed("response.created") + typed("error"), Task.RESPONSES, StreamEnd.ERROR),
        (typed("response.created") + b'data: {"error":{"message":"x"}}\n\n', Task.RESPONSES, StreamEnd.ERROR),
        (typed("response.created") + typed("response.output_text.delta"), Task.RESPONSES, StreamEnd.TRUNCATED),
        (typed("a") + typed("a", delta='"type":"response.completed"'), Task.RESPONSES, StreamEnd.TRUNCATED),
        (typed("response.completed")[30:], Task.RESPONSES, StreamEnd.COMPLETE),  # longer than the tail: unknown
        (typed("response.completed")[:-1], Task.RESPONSES, StreamEnd.TRUNCATED),
        (b"", Task.RESPONSES, StreamEnd.TRUNCATED),
        (typed("transcript.text.delta") + typed("transcript.text.done"), Task.TRANSCRIPTION, StreamEnd.COMPLETE),
        (typed("speech.audio.delta") + typed("its own"), Task.SPEECH, StreamEnd.COMPLETE),
        (typed("image_generation.partial_image")[:-3], Task.IMAGE, StreamEnd.TRUNCATED),
    ],
)
def test_the_end_of_a_stream_of_typed_events(tail: bytes, task: Task, end: StreamEnd) -> None:
    assert OPENAI.stream_end(tail, task) is end


# -- errors for clients -----------------------------------------------------------------------------------------------


def payload(error: ByzerError) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(error_body(error))["error"]
    return value


def test_an_error_of_ours() -> None:
    error = ModelNotFound("There is no instance named 'x'.", hint="Deployed: m.", param="model")
    assert error_object(error) == {
        "message": "There is no instance named 'x'. Deployed: m.",
        "type": "not_found_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_a_vendors_error_keeps_code_type_and_request_id() -> None:
    vendors = UpstreamError("no", vendor_code=20012, vendor_type="T", request_id="r-1", status=400)
    assert error_object(vendors) == {
        "message": "no", "type": "T", "param": None, "code": 20012, "upstream_request_id": "r-1",
    }  # fmt: skip
    zero = UpstreamError("no", vendor_code=0)
    assert error_object(zero)["code"] == 0
    timeout = UpstreamTimeout("slow", details={"timeout": "idle"})
    assert (error_object(timeout)["code"], error_object(timeout)["type"]) == ("upstream_timeout", "upstream_error")


@pytest.mark.parametrize("cls", error_types())
def test_every_error_comes_back_from_its_body(cls: type[ByzerError]) -> None:
    error = cls("what was wrong", param="model")
    back = from_payload(payload(error), error.status)
    assert (back.code, back.message, back.param, back.status) == (cls.code, error.message, "model", error.status)


def test_an_error_parsed_from_our_own_answer_says_the_same() -> None:
    error = InvalidInput("bad", param="stream")
    parsed = parse_error(error.status, {}, error_body(error))
    assert payload(parsed) == payload(error)


def test_an_error_inside_a_stream_is_one_event() -> None:
    event = error_event(InvalidInput("line one\nline two"))
    assert event.startswith(b'data: {"error":{"message":"line one\\nline two"')
    assert event.endswith(b"}}\n\n")
    assert event.count(b"\n") == 2
    assert OPENAI.stream_end(CHUNK + event, Task.CHAT) is StreamEnd.ERROR


def test_a_defect_names_the_request_and_nothing_else() -> None:
    assert payload(internal_error("req-1"))["message"].startswith("Internal error while answering req-1;")
