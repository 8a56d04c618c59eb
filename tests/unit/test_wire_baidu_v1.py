"""Baidu's ``wenxinworkshop``: a path a model, functions, embeddings, ``is_end``, and codes of errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit import legacy
from tests.unit.legacy import ANSWERED, HARMLESS, NOWHERE, TOOL, USER
from tests.vendors.baidu_v1 import ANSWER_ID, answer, error_in_answer, stream

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.providers.registry import provider
from byzerllm.wire.baidu_v1 import BaiduV1
from byzerllm.wire.base import Outgoing, Task, Vendor
from byzerllm.wire.events import Event, Failure, Finish, Reasoning, Started, Text, Tokens, ToolCall

MODELS = provider("qianfan").models
VENDOR = Vendor("ERNIE-3.5-8K", "Baidu", capabilities=frozenset(("tools",)), models=MODELS)
WIRE = "baidu_v1"


def body(**fields: Any) -> dict[str, Any]:
    return legacy.body(WIRE, VENDOR, **fields)


def decoded(*chunks: Any) -> list[Event]:
    decoder = BaiduV1().stream()
    return decoder.feed(b"".join(b"data: %b\n\n" % json.dumps(c).encode() for c in chunks)) + decoder.close()


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("ERNIE-4.0-8K", "/chat/completions_pro"),
        ("ERNIE-4.0-8K-Preview", "/chat/ernie-4.0-8k-preview"),
        ("ERNIE-Bot-turbo", "/chat/eb-instant"),
        ("ERNIE-Speed-8K", "/chat/ernie_speed"),
        ("my/own?", "/chat/my%2Fown%3F"),
    ],
)
def test_the_path_is_the_models(model: str, path: str) -> None:
    assert legacy.asked(WIRE, Vendor(model, models=MODELS)).path == path


def test_a_small_request_has_no_more_than_the_client_said() -> None:
    assert body() == {"messages": [USER]}


def test_everything_that_it_has() -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "hello"}, USER]
    assert body(
        messages=messages, max_tokens=5, temperature=0.5, top_p=0.9, stop=["x"], stream=True, user="u1",
        penalty_score=1.5, disable_search=False, tools=[TOOL],
    ) == {
        "messages": [USER, {"role": "assistant", "content": "hello"}, USER],
        "system": "Be brief.", "max_output_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["x"], "stream": True,
        "user_id": "u1", "penalty_score": 1.5, "disable_search": False,
        "functions": [{"name": "add", "description": "Adds.", "parameters": {"type": "object"}}],
    }  # fmt: skip


def test_a_call_and_its_result_go_back() -> None:
    call = {"name": "add", "arguments": '{"a":1}'}
    assert body(messages=ANSWERED)["messages"][1:] == [
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "add", "content": "3"},
    ]
    thought = [USER, {**legacy.CALLED[1], "reasoning_content": "I must add."}]
    assert body(messages=thought)["messages"][1]["function_call"] == {**call, "thoughts": "I must add."}
    named = [USER, {"role": "tool", "tool_call_id": "gone", "name": "sub", "content": "1"}]
    assert body(messages=named)["messages"][1] == {"role": "function", "name": "sub", "content": "1"}
    assert "functions" not in body(tools=[TOOL], tool_choice="none")


@pytest.mark.parametrize("fields", HARMLESS, ids=str)
def test_what_asks_for_nothing_is_accepted(fields: dict[str, Any]) -> None:
    assert body(**fields) == body()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *NOWHERE,
        ({"top_k": 1}, "top_k"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "add"}}}, "tool_choice"),
    ],
    ids=str,
)
def test_what_it_has_not_is_refused(fields: dict[str, Any], param: str | None) -> None:
    error = legacy.refused(WIRE, VENDOR, **fields)
    assert "Baidu has no" in error.message
    assert param is None or error.param == param


def test_messages_that_it_cannot_carry_are_refused() -> None:
    twice = [USER, {"role": "assistant", "tool_calls": [legacy.CALL, {**legacy.CALL, "id": "c2"}]}]
    assert "one tool call" in legacy.refused(WIRE, VENDOR, messages=twice).message
    orphan = [USER, {"role": "tool", "tool_call_id": "c9", "content": "3"}]
    assert "'c9'" in legacy.refused(WIRE, VENDOR, messages=orphan).message
    toolless = Vendor("m", "Baidu", models=MODELS)
    assert legacy.refused(WIRE, toolless, tools=[TOOL]).param == "tools"


def test_embeddings() -> None:
    def asked(**fields: Any) -> Outgoing:
        return legacy.asked(WIRE, Vendor("bge-large-zh", "Baidu", models=MODELS), Task.EMBEDDING, **fields)

    sent = asked(messages=None, input="a", user="u")
    assert (sent.path, json.loads(sent.body)) == ("/embeddings/bge_large_zh", {"input": ["a"], "user_id": "u"})
    assert json.loads(asked(messages=None, input=["a", "b"]).body) == {"input": ["a", "b"]}
    for fields in ({"dimensions": 5}, {"normalize": True}):
        with pytest.raises(Exception, match=f"no {next(iter(fields))}"):
            asked(messages=None, input="a", **fields)
    read = BaiduV1().embeddings
    assert read(b'{"data":[{"index":1,"embedding":[2]},{"index":0,"embedding":[1]}]}') == ([[1.0], [2.0]], 0)
    assert read(b'{"data":[{"embedding":[2.5]}],"usage":{"prompt_tokens":3}}') == ([[2.5]], 3)
    with pytest.raises(UpstreamError, match="too long") as reported:
        read(error_in_answer("336003", "too long"))
    assert reported.value.status == 400
    for broken in (b"{}", b"no"):
        with pytest.raises(UpstreamBroken, match="no embeddings"):
            read(broken)


def test_a_whole_answer() -> None:
    data = answer([Text("Hi"), Tokens(1, 2), Finish("stop")])
    assert BaiduV1().events(data) == [Started(ANSWER_ID), Text("Hi"), Tokens(1, 2), Finish("stop")]


@pytest.mark.parametrize("sent", [b"{}", b'{"id":"as-1"}', b"no", b'{"result":7}'])
def test_an_answer_that_is_none(sent: bytes) -> None:
    [failure] = BaiduV1().events(sent)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, UpstreamBroken)


def test_a_call() -> None:
    data = stream([ToolCall(0, "", "add", '{"a":1}'), Tokens(1, 2), Finish("tool_calls")])
    decoder = BaiduV1().stream()
    call = ToolCall(0, f"call_{ANSWER_ID}", "add", '{"a":1}')
    expected: list[Event] = [Started(ANSWER_ID), call, Tokens(1, 2), Finish("tool_calls")]
    assert decoder.feed(data) + decoder.close() == expected


def test_a_call_in_pieces_with_a_thought() -> None:
    assert decoded(
        {"function_call": {"name": "add", "arguments": '{"a"', "thoughts": "I must add."}},
        {"function_call": {"name": "add", "arguments": ":1}"}},
        {"is_end": True, "result": ""},
    ) == [
        Started(""),
        Reasoning("I must add."),
        ToolCall(0, "call_0", "add", '{"a"'),
        ToolCall(0, "", "", ":1}"),
        Finish("tool_calls"),
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"finish_reason": "normal"}, "stop"),
        ({"finish_reason": "stop"}, "stop"),
        ({"finish_reason": "length"}, "length"),
        ({"is_truncated": True}, "length"),
        ({"finish_reason": "content_filter"}, "content_filter"),
        ({"flag": 7}, "content_filter"),
        ({}, "stop"),
    ],
)
def test_why_it_ended(fields: dict[str, Any], reason: Any) -> None:
    assert decoded({"is_end": True, "result": "a", **fields})[-1] == Finish(reason)


def test_usage_counts_once_and_a_stream_without_its_end_is_not_whole() -> None:
    events = decoded({"result": "a", "is_end": False, "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    assert [type(e) for e in events] == [Started, Text, Failure]


@pytest.mark.parametrize(
    ("code", "status"),
    [("1", 500), ("3", 400), ("4", 429), ("13", 401), ("15", 403), ("110", 401), ("336100", 503), ("336105", 400)],
)
def test_codes_of_errors(code: str, status: int) -> None:
    [failure] = BaiduV1().events(error_in_answer(code, "no"))
    assert isinstance(failure, Failure)
    assert (failure.error.status, failure.error.vendor_code, failure.error.message) == (status, int(code), "no")
    assert failure.error.request_id == ANSWER_ID


def test_an_error_with_its_own_status() -> None:
    error = BaiduV1().error(403, {}, b'{"error_code":6}')
    assert (error.status, error.message, error.request_id) == (403, "Baidu reported the error 6.", None)
    assert BaiduV1().error(502, {}, b"<html>Bad Gateway</html>").message == "Bad Gateway"
    assert BaiduV1().error(500, {}, b'{"message":"down"}').message == "down"
