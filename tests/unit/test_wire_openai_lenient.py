"""OpenAI's format from vendors that leave out much of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.vendors.openai_lenient import FAKE

from byzerllm.errors import InvalidInput, UpstreamBroken
from byzerllm.wire import translator
from byzerllm.wire.base import Task, Vendor, decode_request
from byzerllm.wire.events import Event, Failure, Finish, Reasoning, Started, Text, Tokens, ToolCall

WIRE = translator("openai_lenient")
SPARK = Vendor("generalv3", "Spark", capabilities=frozenset(("tools",)))


def body(vendor: Vendor = SPARK, **fields: Any) -> Any:
    sent = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    outgoing = WIRE.request(decode_request(Task.CHAT, json.dumps(sent).encode()), vendor)
    assert outgoing.path == "/chat/completions"
    return json.loads(outgoing.body)


def streamed(data: bytes) -> list[Event]:
    decoder = WIRE.stream()
    return [*decoder.feed(data), *decoder.close()]


def test_what_the_client_sets_goes_to_the_vendor_as_it_is() -> None:
    fields: dict[str, Any] = {"temperature": 0.5, "top_k": 3, "unknown": {"a": [1]}, "tools": [
        {"type": "function", "function": {"name": "f", "parameters": {}}}, {"type": "web_search", "web_search": {}},
    ][:1]}  # fmt: skip
    assert body(**fields) == {"model": "generalv3", "messages": [{"role": "user", "content": "hi"}], **fields}


@pytest.mark.parametrize(
    ("capability", "fields"),
    [
        ("vision", {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://h/i.png"}},
        ]}]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("json_schema", {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}}),
    ],
)  # fmt: skip
def test_what_the_table_does_not_have_is_refused(capability: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=f"Spark has no {capability}"):
        body(Vendor("m", "Spark"), **fields)
    assert body(Vendor("m", "Spark", capabilities=frozenset((capability,))), **fields)


def test_a_stream_is_asked_for_its_tokens_where_that_is_known_to_work() -> None:
    assert "stream_options" not in body(stream=True)
    assert body(Vendor("m", asks_usage=True), stream=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in body(Vendor("m", asks_usage=True))


def test_an_answer_without_a_reason_has_stopped() -> None:
    script: list[Event] = [Text("hi"), Tokens(6, 2)]
    assert WIRE.events(FAKE.answer(script)) == [Started("cha0@dx"), *script, Finish("stop")]
    assert streamed(FAKE.stream(script)) == [Started("cha0@dx"), *script, Finish("stop")]


def test_calls_and_reasoning() -> None:
    script: list[Event] = [Reasoning("hm"), ToolCall(0, "c1", "f", "{}")]
    assert WIRE.events(FAKE.answer(script)) == [Started("cha0@dx"), *script, Finish("tool_calls")]
    assert streamed(FAKE.stream(script)) == [Started("cha0@dx"), *script, Finish("tool_calls")]
    one = {"choices": [{"message": {"tool_calls": {"id": "c", "function": {"name": "f", "arguments": "{}"}}}}]}
    assert ToolCall(0, "c", "f", "{}") in WIRE.events(json.dumps(one).encode())


@pytest.mark.parametrize(
    ("reason", "finish"), [("length", "length"), ("content_filter", "content_filter"), ("odd", "stop"), ("", "stop")]
)
def test_a_reason_is_kept(reason: str, finish: str) -> None:
    chunk = json.dumps({"choices": [{"delta": {"content": "a"}, "finish_reason": reason}]}).encode()
    assert streamed(b"data: " + chunk + b"\n\ndata: [DONE]\n\n")[-1] == Finish(finish)  # type: ignore[arg-type]


def test_usage_after_the_reason_counts() -> None:
    chunks = [
        {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {
            "cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 2}}},
    ]  # fmt: skip
    data = b"".join(b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks)
    assert streamed(data)[-2:] == [Tokens(9, 4, 3, 2), Finish("stop")], "a reason is enough where [DONE] is missing"


@pytest.mark.parametrize("data", [b"", b'data:{"choices":[{"delta":{"content":"a"}}]}\n\n', b"data:[DONE]\n\n"])
def test_a_stream_that_is_cut_off_is_a_failure(data: bytes) -> None:
    last = streamed(data)[-1]
    assert isinstance(last, Failure)
    assert isinstance(last.error, UpstreamBroken)


@pytest.mark.parametrize("data", [b'{"choices":[]}', b"[]", b"{", b'{"choices":7}'])
def test_an_answer_that_is_none_is_a_failure(data: bytes) -> None:
    (*_, last) = WIRE.events(data)
    assert isinstance(last, Failure)
    assert isinstance(last.error, UpstreamBroken)


def test_an_error_inside_has_the_vendors_words_and_a_status() -> None:
    assert FAKE.error_in_answer is not None
    assert FAKE.error_in_stream is not None
    for events in (
        WIRE.events(FAKE.error_in_answer("11202", "slow down")),
        streamed(FAKE.error_in_answer("11202", "slow down")),
        streamed(FAKE.error_in_stream([Text("a")], "11202", "slow down")),
    ):
        last = events[-1]
        assert isinstance(last, Failure)
        error = last.error
        assert (error.status, error.message, error.vendor_code, error.request_id) == (
            429, "slow down", 11202, "cha0@dx",
        )  # fmt: skip


def test_an_error_answer_has_the_vendors_words() -> None:
    said = FAKE.error(401, "none", "invalid user")
    error = WIRE.error(said.status, said.headers, said.body)
    assert (error.status, error.message) == (401, "invalid user")
