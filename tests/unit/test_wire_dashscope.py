"""Requests in DashScope's own format, for both paths."""

from __future__ import annotations

import json
from typing import Any

import pytest

from byzerllm.errors import InvalidInput
from byzerllm.providers.registry import provider
from byzerllm.wire import translator
from byzerllm.wire.base import Outgoing, Task, Vendor, decode_request

WIRE = translator("dashscope")
TEXT, SEES = "qwen-plus", "qwen3-vl-plus"
USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA, "strict": True}}
PIXEL = "data:image/png;base64,iVBORw0KGgo="
TEXT_PATH = "/services/aigc/text-generation/generation"
MULTIMODAL_PATH = "/services/aigc/multimodal-generation/generation"
FRAMING = {"result_format": "message", "incremental_output": True}


def vendor(model: str = TEXT, kind: str = "qianwen", **changes: Any) -> Vendor:
    table = provider(kind)
    fields = {"title": table.title, "capabilities": table.capabilities, "models": table.models, **changes}
    return Vendor(model, **fields)


def outgoing(to: Vendor, task: Task = Task.CHAT, **fields: Any) -> Outgoing:
    given = {"model": "chat", **({"messages": [USER]} if task is Task.CHAT else {}), **fields}
    return WIRE.request(decode_request(task, json.dumps(given).encode()), to)


def sent(model: str = TEXT, to: Vendor | None = None, **fields: Any) -> dict[str, Any]:
    """The body that goes to the vendor."""
    found: dict[str, Any] = json.loads(outgoing(to or vendor(model), **fields).body)
    return found


def parameters(**fields: Any) -> dict[str, Any]:
    """The parameters but for those that every request has."""
    found: dict[str, Any] = sent(**fields)["parameters"]
    assert {name: found.pop(name) for name in FRAMING} == FRAMING
    return found


def messages(*given: dict[str, Any], model: str = TEXT) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sent(model, messages=list(given))["input"]["messages"]
    return found


def refusal(model: str = TEXT, to: Vendor | None = None, **fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as found:
        sent(model, to, **fields)
    return found.value


def image(url: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image_url", "image_url": url}, {"type": "text", "text": "?"}]}


# Where it goes


@pytest.mark.parametrize(
    ("kind", "model", "path"),
    [
        ("qianwen", "qwen-turbo", TEXT_PATH),
        ("qianwen", "qwen3-max", TEXT_PATH),
        ("qianwen", "qwen3.5-plus", MULTIMODAL_PATH),
        ("qianwen", "qwen3.8-max", MULTIMODAL_PATH),
        ("qianwen", "qwen3-vl-plus", MULTIMODAL_PATH),
        ("qianwen", "qwen2.5-vl-7b-instruct", MULTIMODAL_PATH),
        ("qianwen", "qvq-max", MULTIMODAL_PATH),
        ("qianwen", "deepseek-v3.2", TEXT_PATH),
        ("qianwen_vl", "qwen-vl-plus", MULTIMODAL_PATH),
        ("qianwen_vl", "my-finetuned-model", MULTIMODAL_PATH),
    ],
)
def test_the_path_is_the_models(kind: str, model: str, path: str) -> None:
    assert outgoing(vendor(model, kind)).path == path


def test_streams_are_asked_for_in_the_headers() -> None:
    assert outgoing(vendor()).headers == {}
    assert outgoing(vendor(), stream=True).headers == {"X-DashScope-SSE": "enable", "Accept": "text/event-stream"}


# Requests


def test_only_what_the_caller_set_is_sent() -> None:
    assert sent() == {"model": TEXT, "input": {"messages": [USER]}, "parameters": FRAMING}


def test_every_setting_has_its_name() -> None:
    assert parameters(
        temperature=0.7, top_p=0.9, top_k=20, max_tokens=256, seed=1, stop=["END"], presence_penalty=0.5, n=1,
        parallel_tool_calls=False,
    ) == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 20, "max_tokens": 256, "seed": 1, "stop": ["END"],
        "presence_penalty": 0.5, "parallel_tool_calls": False,
    }  # fmt: skip


def test_the_vendors_own_fields_are_parameters() -> None:
    own = {"enable_search": True, "search_options": {"forced_search": True}, "repetition_penalty": 1.1}
    assert parameters(**own) == own
    assert parameters(incremental_output=False) == {}  # an older script's; the pieces are ours to join


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"user": "u1"}, "user"),
        ({"logprobs": True}, "logprobs"),
        ({"n": 2}, "n"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"reasoning_effort": "max"}, "reasoning_effort"),
        ({"messages": [image(PIXEL)]}, "messages"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


@pytest.mark.parametrize(
    ("capability", "model", "fields"),
    [
        ("tools", TEXT, {"tools": [TOOL]}),
        ("vision", SEES, {"messages": [image(PIXEL)]}),
        ("json_schema", TEXT, {"response_format": {"type": "json_object"}}),
        ("reasoning", TEXT, {"reasoning_effort": "low"}),
    ],
)
def test_a_vendor_without_the_capability_refuses(capability: str, model: str, fields: dict[str, Any]) -> None:
    every = provider("qianwen").capabilities
    assert capability in refusal(to=vendor(model, capabilities=every - {capability}), **fields).message
    assert sent(model, **fields)


def test_a_text_model_that_is_shown_an_image() -> None:
    assert refusal(messages=[image(PIXEL)]).message.startswith("qwen-plus takes no images.")


@pytest.mark.parametrize("url", [PIXEL, "https://x.y/a.png"])
def test_images(url: str) -> None:
    assert messages(image(url), model=SEES) == [{"role": "user", "content": [{"image": url}, {"text": "?"}]}]


def test_a_data_url_must_hold_data() -> None:
    assert refusal(SEES, messages=[image("data:image/png;base64,")]).param == "messages"


def test_the_multimodal_path_has_lists_for_every_role() -> None:
    system, assistant = {"role": "developer", "content": "brief"}, {"role": "assistant", "content": None}
    assert messages(system, USER, assistant, model="qwen3.6-plus") == [
        {"role": "system", "content": [{"text": "brief"}]},
        {"role": "user", "content": [{"text": "Hi"}]},
        {"role": "assistant", "content": []},
    ]


def test_calls_and_their_results() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    assistant = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm", "refusal": None}
    result = {
        "role": "tool",
        "tool_call_id": "c1",
        "content": [{"type": "text", "text": "su"}, {"type": "text", "text": "n"}],
    }
    assert messages(USER, assistant, {**result, "name": "weather"}) == [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [{**call, "index": 0}], "reasoning_content": "hm"},
        {"role": "tool", "content": "sun", "tool_call_id": "c1", "name": "weather"},
    ]


def test_a_messages_own_fields_stay() -> None:
    assert messages({"role": "assistant", "content": "def", "partial": True})[0]["partial"] is True


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ({"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_tools(choice: Any, expected: Any) -> None:
    bare = {"type": "function", "function": {"name": "now"}}
    empty = {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}
    assert parameters(tools=[TOOL, bare], tool_choice=choice) == {
        "tools": [TOOL, {"type": "function", "function": empty}],
        "tool_choice": expected,
    }


def test_json() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    assert parameters(response_format={"type": "json_object"}) == {"response_format": {"type": "json_object"}}
    assert parameters(response_format=schema)["response_format"] == schema
    strict = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "description": "d", "schema": SCHEMA}}
    assert parameters(response_format=strict)["response_format"] == strict
    unnamed = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    assert parameters(response_format=unnamed)["response_format"]["json_schema"] == {"name": "answer", "schema": SCHEMA}


def test_reasoning_effort() -> None:
    assert parameters(reasoning_effort="none") == {"enable_thinking": False}
    assert parameters(reasoning_effort="medium") == {"enable_thinking": True, "thinking_budget": 8192}
    assert parameters(enable_thinking=True, thinking_budget=99) == {"enable_thinking": True, "thinking_budget": 99}
    assert refusal("deepseek-r1", reasoning_effort="low").message == (
        "deepseek-r1 has no reasoning_effort 'low'. It has: none."
    )


# Embeddings


def test_an_embedding_request() -> None:
    to = vendor("text-embedding-v4")
    found = outgoing(to, Task.EMBEDDING, input="a")
    assert found.path == "/services/embeddings/text-embedding/text-embedding"
    assert json.loads(found.body) == {"model": "text-embedding-v4", "input": {"texts": ["a"]}}
    more = outgoing(to, Task.EMBEDDING, input=["a", "b"], dimensions=256, text_type="query", encoding_format="float")
    assert json.loads(more.body) == {
        "model": "text-embedding-v4",
        "input": {"texts": ["a", "b"]},
        "parameters": {"text_type": "query", "dimension": 256},
    }


@pytest.mark.parametrize("fields", [{"input": [1, 2]}, {"input": "x", "user": "u"}])
def test_an_embedding_request_that_it_cannot_do(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        outgoing(vendor(), Task.EMBEDDING, **fields)


# The tables


@pytest.mark.parametrize("kind", ["qianwen", "qianwen_vl"])
def test_both_formats_are_in_the_same_regions(kind: str) -> None:
    table = provider(kind)
    native = table.speaking("dashscope")
    assert native.regions.keys() == table.regions.keys()
    for region, url in table.regions.items():
        assert native.regions[region] == url.replace("/compatible-mode/v1", "/api/v1")
    assert table.regions["cn"] == table.base_url
    assert native.regions["cn"] == native.base_url
