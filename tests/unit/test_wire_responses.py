"""Requests in the format of OpenAI's Responses API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from byzerllm.errors import InvalidInput
from byzerllm.providers.registry import provider
from byzerllm.wire import translator
from byzerllm.wire.anthropic_thinking import signature_of
from byzerllm.wire.base import Outgoing, Task, Vendor, decode_request

WIRE = translator("responses")
MODEL = "gpt-5.2"
USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def vendor(**changes: Any) -> Vendor:
    table = provider("openai_response")
    return Vendor(MODEL, **{"title": table.title, "capabilities": table.capabilities, **changes})


def outgoing(fields: dict[str, Any], to: Vendor | None = None) -> Outgoing:
    body = json.dumps({"model": "chat", "messages": [USER], **fields}).encode()
    return WIRE.request(decode_request(Task.CHAT, body), to or vendor())


def sent(to: Vendor | None = None, **fields: Any) -> dict[str, Any]:
    """The body that goes to the vendor."""
    found: dict[str, Any] = json.loads(outgoing(fields, to).body)
    return found


def items(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sent(messages=list(messages))["input"]
    return found


def refusal(to: Vendor | None = None, **fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as found:
        sent(to, **fields)
    return found.value


def tool(name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}


def call(id: str = "c1", name: str = "weather", arguments: str = '{"city":"Ulm"}') -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def image(url: str, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


# Requests


def test_only_what_the_caller_set_is_sent() -> None:
    found = outgoing({})
    assert (found.path, found.headers) == ("/responses", {})
    assert json.loads(found.body) == {"model": MODEL, "input": [{"role": "user", "content": "Hi"}]}


def test_every_setting_has_its_name() -> None:
    found = sent(
        stream=True, stream_options={"include_usage": True}, max_tokens=9, temperature=0, top_p=0.9, n=1,
        reasoning_effort="low", verbosity="high", parallel_tool_calls=False, frequency_penalty=0,
        logprobs=False, logit_bias={}, user=None,
    )  # fmt: skip
    assert found == {
        "model": MODEL, "input": [{"role": "user", "content": "Hi"}], "stream": True, "max_output_tokens": 9,
        "temperature": 0, "top_p": 0.9, "reasoning": {"effort": "low"}, "text": {"verbosity": "high"},
        "parallel_tool_calls": False,
    }  # fmt: skip


def test_fields_that_both_apis_or_only_this_one_have_are_kept() -> None:
    own: dict[str, Any] = {
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "metadata": {"team": "a"},
        "previous_response_id": "resp_1",
        "service_tier": "flex",
        "max_output_tokens": 9,
        "instructions": "Be brief.",
    }
    found = sent(**own)
    assert {name: found[name] for name in own} == own


def test_the_apis_own_objects_are_completed() -> None:
    found = sent(
        reasoning={"summary": "auto", "effort": "high"},
        text={"verbosity": "low", "format": {"type": "text"}},
        response_format={"type": "json_object"},
    )
    assert found["reasoning"] == {"summary": "auto", "effort": "high"}
    assert found["text"] == {"verbosity": "low", "format": {"type": "json_object"}}
    assert sent(reasoning={"summary": "auto"}, reasoning_effort="low")["reasoning"] == {
        "summary": "auto",
        "effort": "low",
    }


def test_the_owners_effort_holds_where_the_caller_sets_none() -> None:
    owned = vendor(params={"reasoning_effort": "low"})
    assert sent(owned)["reasoning"] == {"effort": "low"}
    assert sent(owned, reasoning_effort="high")["reasoning"] == {"effort": "high"}
    assert sent(owned, reasoning={"effort": "high"})["reasoning"] == {"effort": "high"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"seed": 0}, "seed"),
        ({"top_k": 0}, "top_k"),
        ({"stop": "END"}, "stop"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"logprobs": True}, "logprobs"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"background": True}, "background"),
        ({"input": "Hi"}, "input"),
    ],
)
def test_what_the_api_lacks_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert f"OpenAI's Responses API has no {param}" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool()]}, "tools"),
        ({"messages": [{"role": "assistant", "tool_calls": [call()]}]}, "tool_calls"),
        ({"messages": [{"role": "user", "content": [image("https://h/a.png")]}]}, "image_url"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, "response_format"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
    ],
)
def test_what_a_vendor_of_the_format_lacks_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(vendor(title="Small", capabilities=frozenset()), **fields)
    assert error.param == param
    assert error.message.startswith("Small has no ")


@pytest.mark.parametrize("name", ["reasoning", "text"])
def test_an_object_of_another_kind_is_refused(name: str) -> None:
    fields: dict[str, Any] = {name: "low"}
    assert refusal(**fields).param == name


# Messages


def test_messages_become_items() -> None:
    assert items(
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
        {"role": "assistant", "content": "C", "refusal": None, "tool_calls": [call(), call("c2", "now", "")]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "noon"}]},
        {"role": "assistant", "content": None},
        {"role": "system", "content": "In German."},
    ) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "AB"},
        {"role": "assistant", "content": "C"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Ulm"}'},
        {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "c2", "output": "noon"},
        {"role": "system", "content": "In German."},
    ]


def test_images_of_users_and_of_tools() -> None:
    text = {"type": "text", "text": "What?"}
    shown = items(
        {"role": "user", "content": [text, image("https://h/a.png", detail="low"), image(PIXEL)]},
        {"role": "tool", "tool_call_id": "c1", "content": [image(PIXEL)]},
    )
    assert shown[0]["content"] == [
        {"type": "input_text", "text": "What?"},
        {"type": "input_image", "image_url": "https://h/a.png", "detail": "low"},
        {"type": "input_image", "image_url": PIXEL},
    ]
    assert shown[1]["output"] == [{"type": "input_image", "image_url": PIXEL}]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "user", "content": "Hi", "name": "Ann"}, r"messages[0].name"),
        ({"role": "assistant", "content": "Hi", "prefix": True}, r"messages[0].prefix"),
        ({"role": "assistant", "content": [image(PIXEL)]}, "no image in an assistant message"),
        ({"role": "user", "content": [image("data:image/png,x")]}, "data URL"),
        ({"role": "tool", "content": "x"}, "tool_call_id"),
    ],
)
def test_messages_that_the_api_cannot_say(message: dict[str, Any], told: str) -> None:
    assert told in refusal(messages=[message]).message


# Tools and structure


def test_tools_are_flat_and_as_strict_as_the_caller_said() -> None:
    found = sent(tools=[tool(description="d"), tool("now", strict=True)], tool_choice="required")
    assert found["tools"] == [
        {"type": "function", "name": "weather", "parameters": SCHEMA, "description": "d", "strict": False},
        {"type": "function", "name": "now", "parameters": SCHEMA, "strict": True},
    ]
    assert found["tool_choice"] == "required"


def test_one_function_can_be_demanded() -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    assert sent(tools=[tool()], tool_choice=choice)["tool_choice"] == {"type": "function", "name": "weather"}


def test_a_schema_is_sent_as_it_came() -> None:
    form = {"name": "place", "schema": SCHEMA, "strict": True, "description": None}
    found = sent(response_format={"type": "json_schema", "json_schema": form})
    assert found["text"] == {
        "format": {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True},
    }
    nameless = sent(response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}})
    assert nameless["text"]["format"] == {"type": "json_schema", "name": "answer", "schema": SCHEMA}


# Reasoning


def test_encrypted_reasoning_goes_back_before_what_followed_it() -> None:
    blocks = [{"type": "reasoning", "id": f"rs_{n}", "encrypted_content": "xyz"} for n in (1, 2)]
    signatures = [signature_of(blocks[:1]), signature_of(blocks)]
    for kept in (signatures[-1], "".join(signatures)):  # clients keep the last one, or join them
        message = {"role": "assistant", "content": "A", "reasoning_content": "Hm", "reasoning_signature": kept}
        assert items(message) == [{**b, "summary": []} for b in blocks] + [{"role": "assistant", "content": "A"}]


def test_reasoning_that_is_not_the_vendors_own_stays_here() -> None:
    for foreign in ({}, {"reasoning_signature": "c2ln"}):
        message = {"role": "assistant", "content": "A", "reasoning_content": "Hm", **foreign}
        assert items(message) == [{"role": "assistant", "content": "A"}]
