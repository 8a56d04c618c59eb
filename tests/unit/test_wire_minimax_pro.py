"""MiniMax's ``chatcompletion_pro``: bots and senders, ``base_resp``, and a last chunk that may repeat everything."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit import legacy
from tests.unit.legacy import HARMLESS, NOWHERE, USER
from tests.vendors.minimax_pro import REQUEST_ID, error_in_answer, stream

from byzerllm.errors import UpstreamBroken
from byzerllm.wire.base import Task, Vendor
from byzerllm.wire.events import Event, Failure, Finish, Started, Text, Tokens
from byzerllm.wire.minimax_pro import MiniMaxPro

VENDOR = Vendor("abab6.5s-chat", "MiniMax")
WIRE = "minimax_pro"


def body(**fields: Any) -> dict[str, Any]:
    return legacy.body(WIRE, VENDOR, **fields)


def decoded(*chunks: Any) -> list[Event]:
    decoder = MiniMaxPro().stream()
    data = b"".join(b"data: %b\n\n" % (c if isinstance(c, bytes) else json.dumps(c).encode()) for c in chunks)
    return decoder.feed(data) + decoder.close()


def chunk(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice: dict[str, Any] = {"messages": [{"sender_type": "BOT", "sender_name": "Assistant", "text": text}]}
    return {"model": "abab", "choices": [choice | ({"finish_reason": finish} if finish else {})], **more}


def test_a_small_request_has_what_the_api_demands_and_no_more() -> None:
    assert legacy.asked(WIRE, VENDOR).path == "", "the base URL is the whole address"
    assert body() == {
        "model": "abab6.5s-chat",
        "bot_setting": [{"bot_name": "Assistant", "content": "Assistant is a helpful assistant."}],
        "messages": [{"sender_type": "USER", "sender_name": "User", "text": "hi"}],
        "reply_constraints": {"sender_type": "BOT", "sender_name": "Assistant"},
    }


def test_everything_that_it_has() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "assistant", "content": "hello"},
        {"role": "developer", "content": "In French."},
        USER,
    ]
    sent = body(
        messages=messages, max_tokens=5, temperature=0.0, top_p=0.9, stream=True, glyph={"type": "json_value"},
        plugins=["plugin_web_search"], sample_messages=[],
    )  # fmt: skip
    assert sent["bot_setting"][0]["content"] == "Be brief.\n\nIn French."
    assert [tuple(m.values()) for m in sent["messages"]] == [
        ("USER", "Ann", "hi"),
        ("BOT", "Assistant", "hello"),
        ("USER", "User", "hi"),
    ]
    assert sent["reply_constraints"]["glyph"] == {"type": "json_value"}
    wanted = ("tokens_to_generate", "temperature", "top_p", "stream", "plugins", "sample_messages")
    assert [sent[name] for name in wanted] == [5, 0.0, 0.9, True, ["plugin_web_search"], []]


@pytest.mark.parametrize("fields", HARMLESS, ids=str)
def test_what_asks_for_nothing_is_accepted(fields: dict[str, Any]) -> None:
    assert body(**fields) == body()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *NOWHERE,
        ({"stop": "x"}, "stop"),
        ({"top_k": 1}, "top_k"),
        ({"presence_penalty": 0.0}, "presence_penalty"),
        ({"user": "u"}, "user"),
        ({"tools": [legacy.TOOL]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": legacy.CALLED}, "messages"),
        ({"messages": legacy.ANSWERED}, "messages"),
    ],
    ids=str,
)
def test_what_it_has_not_is_refused(fields: dict[str, Any], param: str | None) -> None:
    error = legacy.refused(WIRE, VENDOR, **fields)
    assert "MiniMax has no" in error.message
    assert param is None or error.param == param


def test_a_whole_answer() -> None:
    data = json.dumps({**chunk("Hi", "length"), "id": "x", "usage": {"total_tokens": 12}, "reply": "Hi"}).encode()
    expected: list[Event] = [Started("x", "abab"), Text("Hi"), Tokens(12, 0), Finish("length")]
    assert MiniMaxPro().events(data) == expected
    [failure] = MiniMaxPro().events(b'{"choices": 7}')
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, UpstreamBroken)


def test_a_last_chunk_that_repeats_everything_adds_nothing() -> None:
    text = [e for e in decoded(chunk("He"), chunk("y"), chunk("Hey", "stop", reply="Hey")) if isinstance(e, Text)]
    assert text == [Text("He"), Text("y")]


def test_a_last_chunk_with_the_last_piece() -> None:
    events = decoded(chunk("He"), chunk("y", "stop", reply="Hey"), b"[DONE]")
    assert events[1:] == [Text("He"), Text("y"), Finish("stop")]


def test_done_alone_ends_nothing_and_separate_counts_are_kept() -> None:
    used = {"total_tokens": 9, "prompt_tokens": 5, "completion_tokens": 4}
    *events, last = decoded(chunk("a", usage=used), b"[DONE]")
    assert Tokens(5, 4) in events
    assert isinstance(last, Failure)


def test_an_error_in_place_of_the_stream() -> None:
    decoder = MiniMaxPro().stream()
    data = b"\n" + error_in_answer("1039", "token limit")
    assert [e for i in range(len(data)) for e in decoder.feed(data[i : i + 1])] == []
    [failure] = decoder.close()
    assert isinstance(failure, Failure)
    assert (failure.error.status, failure.error.vendor_code) == (429, 1039)
    assert failure.error.request_id == REQUEST_ID
    assert failure.error.body == data.strip()


def test_a_chunk_that_is_none_and_what_follows_an_end() -> None:
    broken = decoded(chunk("a"), b"garbage", chunk("b"))
    assert [type(e) for e in broken] == [Started, Text, Failure]
    assert decoded(chunk("a", "stop"), chunk("b"))[-1] == Finish("stop")


def test_an_error_without_a_message_says_its_code() -> None:
    error = MiniMaxPro().error(400, {}, b'{"base_resp":{"status_code":2013}}')
    assert (error.message, error.status, error.request_id) == ("MiniMax reported the error 2013.", 400, None)


@pytest.mark.parametrize("sent", [b"busy", b'{"message":"busy"}', b'{"message":"busy","base_resp":{"status_code":0}}'])
def test_an_error_of_another_form(sent: bytes) -> None:
    assert MiniMaxPro().error(502, {}, sent).message == "busy"


def test_it_has_chat_alone() -> None:
    assert MiniMaxPro.tasks == {Task.CHAT}


def test_an_empty_stream_is_no_answer() -> None:
    decoder = MiniMaxPro().stream()
    assert decoder.feed(b" \n") == []
    [failure] = decoder.close()
    assert isinstance(failure, Failure)
    assert stream([Finish("stop")]).startswith(b"data: "), "the fake's own framing"
