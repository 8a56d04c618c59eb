"""Requests in Anthropic's Messages format: every capability, and what differs between models."""

from __future__ import annotations

import json
from typing import Any

import pytest

from byzerllm.errors import InvalidInput
from byzerllm.providers.registry import provider
from byzerllm.wire import translator
from byzerllm.wire.anthropic_thinking import blocks_of
from byzerllm.wire.base import Task, Vendor, decode_request

WIRE = translator("anthropic")
OLD, BETWEEN, NEW = "claude-haiku-4-5-20251001", "claude-opus-4-6", "claude-opus-5-5"
USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def vendor(model: str = OLD, **changes: Any) -> Vendor:
    table = provider("claude")
    fields = {"title": table.title, "capabilities": table.capabilities, "models": table.models, **changes}
    return Vendor(model, **fields)


def sent(model: str = OLD, to: Vendor | None = None, **fields: Any) -> dict[str, Any]:
    """The body that goes to the vendor."""
    body = json.dumps({"model": "chat", "messages": [USER], **fields}).encode()
    outgoing = WIRE.request(decode_request(Task.CHAT, body), to or vendor(model))
    assert outgoing.path == "/v1/messages"
    found: dict[str, Any] = json.loads(outgoing.body)
    return found


def turns(*messages: dict[str, Any], model: str = OLD) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sent(model, messages=list(messages))["messages"]
    return found


def refusal(model: str = OLD, to: Vendor | None = None, **fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as found:
        sent(model, to, **fields)
    return found.value


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


# Requests


def test_only_what_the_caller_set_is_sent() -> None:
    assert sent() == {
        "model": OLD,
        "max_tokens": 64000,
        "messages": [{"role": "user", "content": [text("Hi")]}],
    }


@pytest.mark.parametrize(
    ("model", "maximum"),
    [
        ("claude-3-haiku-20240307", 4096),
        ("claude-opus-4-1-20250805", 32000),
        ("claude-sonnet-4-5-20250929", 64000),
        ("claude-opus-4-9", 128000),
        ("glm-5", 8192),
    ],
)
def test_the_maximum_that_the_api_demands_is_the_models(model: str, maximum: int) -> None:
    assert sent(model)["max_tokens"] == maximum
    assert sent(model, max_tokens=7)["max_tokens"] == 7
    assert sent(model, max_completion_tokens=8)["max_tokens"] == 8


def test_without_a_known_maximum_the_caller_has_to_set_it() -> None:
    assert refusal(to=vendor("unknown", models={})).param == "max_tokens"


def test_system_messages_go_to_the_top() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "developer", "content": [text("Be "), text("kind.")]},
    ]
    body = sent(messages=messages)
    assert body["system"] == "Be brief.\n\nBe kind."
    assert body["messages"] == [{"role": "user", "content": [text("Hi")]}]


def test_turns_of_one_role_in_a_row_are_joined_and_empty_ones_left_out() -> None:
    assert turns(
        USER,
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [text("there"), text("")]},
        {"role": "assistant", "content": "Hello"},
        USER,
    ) == [
        {"role": "user", "content": [text("Hi"), text("there")]},
        {"role": "assistant", "content": [text("Hello")]},
        {"role": "user", "content": [text("Hi")]},
    ]


def test_sampling_stop_and_stream_go_up_as_they_are() -> None:
    body = sent(temperature=0.5, top_p=0.9, top_k=4, stop=["a", "b"], stream=True)
    assert {k: body[k] for k in body.keys() - {"model", "messages", "max_tokens"}} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "stop_sequences": ["a", "b"],
        "stream": True,
    }


@pytest.mark.parametrize(("name", "value"), [("temperature", 0), ("top_p", 1), ("top_k", 4)])
def test_a_model_that_refuses_sampling_is_named(name: str, value: Any) -> None:
    error = refusal(NEW, **{name: value})
    assert error.param == name
    assert NEW in error.message
    assert name in error.message
    assert sent(BETWEEN, **{name: value})[name] == value


def test_the_one_temperature_that_every_model_takes_is_sent() -> None:
    assert sent(NEW, temperature=1)["temperature"] == 1


@pytest.mark.parametrize("model", [BETWEEN, NEW])
def test_a_model_without_prefill_is_named(model: str) -> None:
    error = refusal(model, messages=[USER, {"role": "assistant", "content": "The"}])
    assert error.param == "messages"
    assert model in error.message


def test_prefill_goes_up_where_the_model_has_it() -> None:
    assert turns(USER, {"role": "assistant", "content": "The"})[-1] == {"role": "assistant", "content": [text("The")]}


# Tools


def test_tools_are_defined() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    function = {"name": "weather", "description": "Of today", "parameters": schema, "strict": True}
    body = sent(tools=[{"type": "function", "function": function}, TOOL])
    assert body["tools"] == [
        {"name": "weather", "description": "Of today", "input_schema": schema, "strict": True},
        {"name": "now", "input_schema": {"type": "object", "properties": {}}},
    ]
    assert "tool_choice" not in body


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        ("auto", None, {"type": "auto"}),
        ("none", False, {"type": "none"}),
        ("required", True, {"type": "any"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        ({"type": "function", "function": {"name": "now"}}, None, {"type": "tool", "name": "now"}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (None, True, None),
    ],
)
def test_tool_choice(choice: Any, parallel: bool | None, expected: dict[str, Any] | None) -> None:
    body = sent(tools=[TOOL], tool_choice=choice, parallel_tool_calls=parallel)
    assert body.get("tool_choice") == expected


def test_parallel_calls_without_tools_need_no_choice() -> None:
    assert "tool_choice" not in sent(parallel_tool_calls=False)


def called(*calls: tuple[str, str, str], **fields: Any) -> dict[str, Any]:
    made = [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls]
    return {"role": "assistant", "content": None, "tool_calls": made, **fields}


def test_results_of_several_calls_are_one_users_turn() -> None:
    found = turns(
        USER,
        called(("c1", "weather", '{"city": "Zürich"}'), ("c2", "now", "")),
        {"role": "tool", "tool_call_id": "c1", "content": "22°", "name": "weather"},
        {"role": "tool", "tool_call_id": "c2", "content": "no clock", "is_error": True},
        {"role": "user", "content": "And?"},
        model=NEW,
    )
    assert found[1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Zürich"}},
                {"type": "tool_use", "id": "c2", "name": "now", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [text("22°")]},
                {"type": "tool_result", "tool_use_id": "c2", "content": [text("no clock")], "is_error": True},
                text("And?"),
            ],
        },
    ]


def test_a_result_may_be_empty_or_an_image() -> None:
    image = {"type": "image_url", "image_url": {"url": PIXEL}}
    results = turns(
        USER,
        called(("c1", "f", "{}"), ("c2", "g", "{}")),
        {"role": "tool", "tool_call_id": "c1", "content": ""},
        {"role": "tool", "tool_call_id": "c2", "content": [image]},
    )[-1]["content"]
    assert results[0] == {"type": "tool_result", "tool_use_id": "c1"}
    assert results[1]["content"][0]["source"]["media_type"] == "image/png"


@pytest.mark.parametrize("arguments", ['{"a": ', "[]"])
def test_arguments_that_are_no_object_are_named(arguments: str) -> None:
    assert "'c1'" in refusal(messages=[USER, called(("c1", "f", arguments)), USER]).message


def test_a_result_has_to_name_its_call() -> None:
    assert "tool_call_id" in refusal(messages=[USER, {"role": "tool", "content": "x"}]).message


# Images


def test_images_by_address_and_as_data() -> None:
    parts = [
        text("?"),
        {"type": "image_url", "image_url": {"url": "https://host/a.png", "detail": "auto"}},
        {"type": "image_url", "image_url": {"url": PIXEL}},
    ]
    assert turns({"role": "user", "content": parts})[0]["content"] == [
        text("?"),
        {"type": "image", "source": {"type": "url", "url": "https://host/a.png"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
    ]


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_an_image_in_another_turn_is_refused(role: str) -> None:
    image = {"type": "image_url", "image_url": {"url": PIXEL}}
    assert role in refusal(messages=[{"role": role, "content": [image]}, USER]).message


# Reasoning


@pytest.mark.parametrize(
    ("effort", "sent_effort"),
    [("minimal", "low"), ("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "xhigh"), ("max", "max")],
)
def test_effort_of_a_model_that_decides_how_long_it_thinks(effort: str, sent_effort: str) -> None:
    body = sent(NEW, reasoning_effort=effort)
    assert body["thinking"] == {"type": "adaptive", "display": "summarized"}
    assert body["output_config"] == {"effort": sent_effort}


@pytest.mark.parametrize(
    ("effort", "maximum", "budget"),
    [
        ("minimal", 2000, 1024),
        ("low", 10000, 2000),
        ("medium", 10000, 5000),
        ("high", 10000, 8000),
        ("max", 2000, 1900),
    ],
)
def test_effort_of_a_model_with_a_budget_is_a_share_of_the_maximum(effort: str, maximum: int, budget: int) -> None:
    body = sent(reasoning_effort=effort, max_tokens=maximum)
    assert body["thinking"] == {"type": "enabled", "budget_tokens": budget}
    assert "output_config" not in body


def test_a_maximum_too_small_to_think_is_refused() -> None:
    assert sent(reasoning_effort="low", max_tokens=1025)["thinking"]["budget_tokens"] == 1024
    assert refusal(reasoning_effort="low", max_tokens=1024).param == "max_tokens"


@pytest.mark.parametrize("model", [OLD, NEW])
def test_thinking_is_switched_off(model: str) -> None:
    body = sent(model, reasoning_effort="none")
    assert body["thinking"] == {"type": "disabled"}
    assert "output_config" not in body


@pytest.mark.parametrize(
    ("model", "effort"), [("claude-3-haiku-20240307", "low"), ("glm-5", "low"), (OLD, "much"), (NEW, "much")]
)
def test_an_effort_that_the_model_has_no_use_for_is_refused(model: str, effort: str) -> None:
    assert refusal(model, reasoning_effort=effort).param == "reasoning_effort"


def test_signed_reasoning_goes_back_first() -> None:
    message = called(("c1", "f", "{}"), content="Let me see.", reasoning_content="Hm", reasoning_signature="c2ln")
    assert [b["type"] for b in turns(USER, message, USER)[1]["content"]] == ["thinking", "text", "tool_use"]
    assert turns(USER, message, USER)[1]["content"][0] == {"type": "thinking", "thinking": "Hm", "signature": "c2ln"}


def test_reasoning_of_another_vendor_is_not_sent() -> None:
    message = {"role": "assistant", "content": "Yes", "reasoning_content": "Hm"}
    assert turns(USER, message, USER)[1]["content"] == [text("Yes")]


def test_a_changed_signature_is_refused() -> None:
    for signature in ("~blocks~%", "~blocks~e30=", "~blocks~/w=="):
        with pytest.raises(InvalidInput, match="reasoning_signature"):
            blocks_of("", signature)


# Other fields


def test_a_schema_becomes_the_output_format() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = sent(NEW, response_format=form, reasoning_effort="low")
    assert body["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": schema}}
    assert refusal("claude-3-haiku-20240307", response_format=form).param == "response_format"
    assert refusal(response_format={"type": "json_object"}).param == "response_format"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("seed", 0),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("logprobs", True),
        ("top_logprobs", 2),
        ("logit_bias", {"1": 2}),
        ("functions", []),
    ],
)
def test_what_anthropic_has_not_is_refused_by_name(field: str, value: Any) -> None:
    error = refusal(**{field: value})
    assert error.param == field
    assert error.message == f"Anthropic Claude has no {field}: leave it out."


def test_fields_that_ask_for_nothing_are_left_out() -> None:
    assert sent(n=1, presence_penalty=0, frequency_penalty=0.0, logprobs=False, store=None, thinking=None) == sent()


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("image_url", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": PIXEL}]}]}),
        ("tools", {"tools": [TOOL]}),
        ("reasoning_effort", {"reasoning_effort": "low"}),
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
    ],
)
def test_what_a_compatible_vendor_has_not_is_refused(field: str, fields: dict[str, Any]) -> None:
    assert refusal(to=vendor(capabilities=frozenset()), **fields).param == field


def test_names_of_participants_are_refused() -> None:
    assert "messages[0].name: leave it out" in refusal(messages=[{**USER, "name": "Ada"}]).message


def test_cache_marks_stay_where_they_were_set() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B", **mark}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://host/a.png"}, **mark}]},
    ]
    found = sent(messages=messages)
    assert found["system"] == [{"type": "text", "text": "A"}, {"type": "text", "text": "B", **mark}]
    assert found["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "url", "url": "https://host/a.png"}, **mark}
    ]


def test_anthropics_own_fields_go_up_as_they_are() -> None:
    own: dict[str, Any] = {
        "service_tier": "standard_only",
        "cache_control": {"type": "ephemeral"},
        "thinking": {"type": "adaptive"},
    }
    body = sent(NEW, **own, user="u1", output_config={"effort": "max"}, verbosity=None)
    assert {k: body[k] for k in own} == own
    assert body["metadata"] == {"user_id": "u1"}
    assert body["output_config"] == {"effort": "max"}
    assert sent(user="u1", metadata={"user_id": "u2"})["metadata"] == {"user_id": "u2"}


def test_what_is_given_twice_is_refused() -> None:
    assert refusal(NEW, reasoning_effort="low", thinking={"type": "adaptive"}).param == "thinking"
    assert refusal(stop="a", stop_sequences=["b"]).param == "stop_sequences"
