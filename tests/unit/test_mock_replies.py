"""The mock's answers, as bytes: no socket, no clock."""

import base64
import json
import math
import struct
from typing import Any

import msgspec
import pytest

from byzerllm.providers.mock_replies import (
    Knobs,
    Refusal,
    Reply,
    chat,
    complete,
    embed,
    failure,
    model_list,
    unit_vector,
)

PLAIN = Knobs()
NOW = 1_700_000_000.9


def request(said: str = "hello big world", /, **fields: Any) -> bytes:
    return msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": said}], **fields})


def whole(reply: Reply) -> Any:
    head, _, body = b"".join(reply.parts).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    return json.loads(body)


def unchunk(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        body += data[: int(size, 16)]
        assert data[int(size, 16) :][:2] == b"\r\n"
        data = data[int(size, 16) + 2 :]
    return body


def events(reply: Reply) -> list[Any]:
    head, _, data = b"".join(reply.parts).partition(b"\r\n\r\n")
    assert b"text/event-stream" in head
    blocks = unchunk(data).decode().split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block[6:]) for block in blocks]


def test_an_answer_echoes_the_last_user_message_and_counts_words() -> None:
    answer = whole(chat(request("hello big world"), PLAIN, 7, NOW))
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "You said: hello big world"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert (answer["id"], answer["model"], answer["object"]) == ("chatcmpl-mock-7", "m", "chat.completion")
    assert answer["created"] == 1_700_000_000


@pytest.mark.parametrize("text", ["a b", " two\n\nlines \n", "", "你好 世界", "trailing  "])
def test_the_tokens_of_a_stream_join_to_the_text(text: str) -> None:
    said = events(chat(request(text, stream=True), PLAIN, 1, NOW))
    content = "".join(event["choices"][0]["delta"].get("content", "") for event in said)
    assert content == whole(chat(request(text), PLAIN, 1, NOW))["choices"][0]["message"]["content"]


def test_a_stream_has_the_role_first_and_the_finish_last() -> None:
    said = [event["choices"][0] for event in events(chat(request("hi", stream=True), PLAIN, 1, NOW))]
    assert said[0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["delta"]["content"] for c in said[1:-1]] == ["You", " said:", " hi"]
    assert (said[-1]["delta"], said[-1]["finish_reason"]) == ({}, "stop")
    assert [c["finish_reason"] for c in said[:-1]] == [None] * 4


def test_usage_is_streamed_only_when_it_is_asked_for() -> None:
    assert all("usage" not in event for event in events(chat(request(stream=True), PLAIN, 1, NOW)))
    asked = events(chat(request(stream=True, stream_options={"include_usage": True}), PLAIN, 1, NOW))
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert [event["usage"] for event in asked[:-1]] == [None] * (len(asked) - 1)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_token_limit_is_kept(field: str) -> None:
    limit: dict[str, Any] = {field: 2}
    answer = whole(chat(request(**limit), PLAIN, 1, NOW))
    assert answer["choices"][0]["message"]["content"] == "You said:"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2
    assert events(chat(request(stream=True, **limit), PLAIN, 1, NOW))[-1]["choices"][0]["finish_reason"] == "length"


def test_the_knobs_set_the_text() -> None:
    assert (
        whole(chat(request(), Knobs(reply="a fixed text"), 1, NOW))["choices"][0]["message"]["content"]
        == "a fixed text"
    )
    answer = whole(chat(request(), Knobs(tokens=3), 1, NOW))
    assert answer["choices"][0]["message"]["content"] == "one two three"
    assert answer["usage"]["completion_tokens"] == 3
    assert len(events(chat(request(stream=True), Knobs(tokens=200), 1, NOW))) == 202
    assert whole(chat(request(), Knobs(tokens=0), 1, NOW))["choices"][0]["message"]["content"] == ""


def test_text_parts_are_read_and_others_passed_over() -> None:
    parts = [{"type": "text", "text": "see "}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "it"}]
    body = request(messages=[{"role": "user", "content": parts}])
    assert whole(chat(body, PLAIN, 1, NOW))["choices"][0]["message"]["content"] == "You said: see it"


TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]


def test_a_tool_is_called_when_it_is_asked_for() -> None:
    choice = whole(chat(request("use the tool", tools=TOOLS), PLAIN, 1, NOW))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "look_up", "arguments": "{}"}


def test_a_streamed_tool_call_has_the_name_first_and_then_the_arguments() -> None:
    said = [e["choices"][0] for e in events(chat(request("a tool!", tools=TOOLS, stream=True), PLAIN, 3, NOW))]
    opening = said[0]["delta"]["tool_calls"][0]
    assert (opening["id"], opening["function"]) == ("call_mock_3", {"name": "look_up", "arguments": ""})
    assert said[1]["delta"]["tool_calls"] == [{"index": 0, "function": {"arguments": "{}"}}]
    assert said[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("text", "knobs", "fields"),
    [
        ("nothing of the kind", PLAIN, {"tools": TOOLS}),
        ("the toolbox", PLAIN, {"tools": TOOLS}),
        ("the tool", PLAIN, {"tools": TOOLS, "tool_choice": "none"}),
        ("the tool", Knobs(reply="no"), {"tools": TOOLS}),
        ("the tool", PLAIN, {}),
    ],
)
def test_a_tool_is_not_called_otherwise(text: str, knobs: Knobs, fields: dict[str, Any]) -> None:
    assert whole(chat(request(text, **fields), knobs, 1, NOW))["choices"][0]["finish_reason"] == "stop"


def test_text_completions_have_their_own_shape() -> None:
    body = {"model": "m", "prompt": "one two"}
    answer = whole(complete(msgspec.json.encode(body), PLAIN, 1, NOW))
    assert (answer["object"], answer["choices"][0]["text"]) == ("text_completion", "You said: one two")
    said = events(complete(msgspec.json.encode({**body, "stream": True}), PLAIN, 1, NOW))
    assert "".join(event["choices"][0]["text"] for event in said) == "You said: one two"
    assert said[-1]["choices"][0]["finish_reason"] == "stop"


def embedding(**fields: Any) -> Any:
    return whole(embed(msgspec.json.encode({"model": "m", "input": ["a", "b"], **fields}), PLAIN, 1))


def test_embeddings_are_unit_vectors_that_depend_on_the_text_alone() -> None:
    first, second = (item["embedding"] for item in embedding()["data"])
    assert len(first) == 8
    assert first == unit_vector("a", 8) != second
    assert math.isclose(sum(x * x for x in first), 1)
    assert [len(item["embedding"]) for item in embedding(dimensions=3)["data"]] == [3, 3]
    assert embedding(input=[[1, 2], [3]])["usage"]["prompt_tokens"] == 3
    assert len(embedding(input=[1, 2])["data"]) == 1


def test_embeddings_come_as_base64_when_asked() -> None:
    packed = embedding(encoding_format="base64")["data"][0]["embedding"]
    assert struct.unpack("<8f", base64.b64decode(packed)) == pytest.approx(unit_vector("a", 8))


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model":"m"}', b'{"messages":[]}', b"\xff", request(stream="yes")])
def test_a_bad_body_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        chat(body, PLAIN, 1, NOW)
    assert caught.value.status == 400


def test_with_a_list_of_models_no_other_exists() -> None:
    knobs = Knobs(models="a,b")
    assert [m["id"] for m in whole(model_list(knobs))["data"]] == ["a", "b"]
    with pytest.raises(Refusal) as caught:
        chat(request(), knobs, 1, NOW)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert whole(chat(request(model="a"), knobs, 1, NOW))["model"] == "a"


def test_failures_have_the_share_and_the_rhythm_they_are_told() -> None:
    assert [n for n in range(1, 9) if Knobs(fail_status=500, fail_every=3).failing_status(n)] == [3, 6]
    assert [n for n in range(1, 9) if Knobs(fail_status=500, fail_rate=0.25).failing_status(n)] == [4, 8]
    assert Knobs(fail_status=429).failing_status(1) == 429
    assert not any(Knobs(fail_status=500, fail_rate=0).failing_status(n) for n in range(1, 99))
    assert Knobs(fail_every=1).failing_status(1) is None


def test_a_failure_is_an_openai_error() -> None:
    head, _, body = failure(Refusal(429, "slow down", "rate_limit_exceeded"), 1.5).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"Retry-After: 1.5\r\n" in head
    error = {"message": "slow down", "type": "invalid_request_error", "param": None, "code": "rate_limit_exceeded"}
    assert json.loads(body) == {"error": error}
    assert failure(Refusal(529, "m", None)).startswith(b"HTTP/1.1 529 ")


def test_cuts_and_stalls_send_the_tokens_before_them() -> None:
    cut = chat(request(stream=True), Knobs(tokens=9, cut_after=4), 1, NOW)
    data = b"".join(cut.parts)
    assert (data.count(b'"content":" ') + 1, cut.then) == (4, "close")
    assert b"[DONE]" not in data
    assert chat(request(stream=True), Knobs(tokens=9, stall_after=4), 1, NOW).then == "stall"
    assert chat(request(stream=True), Knobs(tokens=4, cut_after=4), 1, NOW).then == "next"
    broken = chat(request(), Knobs(tokens=9, cut_after=4), 1, NOW)
    head, _, body = b"".join(broken.parts).partition(b"\r\n\r\n")
    assert broken.then == "close"
    assert len(body) < int(head.rpartition(b"Content-Length: ")[2])


def test_garbage_is_garbage() -> None:
    assert not b"".join(chat(request(), Knobs(malformed=True), 1, NOW).parts).startswith(b"HTTP")
    stream = b"".join(chat(request(stream=True), Knobs(malformed=True), 1, NOW).parts)
    body = unchunk(stream.partition(b"\r\n\r\n")[2])
    with pytest.raises(ValueError):
        json.loads(body[6:])
