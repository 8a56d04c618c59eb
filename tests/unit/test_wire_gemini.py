"""Requests in Gemini's format, by capability and model."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from byzerllm.errors import InvalidInput
from byzerllm.providers.registry import provider
from byzerllm.wire import translator
from byzerllm.wire.base import Outgoing, Task, Vendor, decode_request

WIRE = translator("gemini")
OLD, NEW = "gemini-2.5-flash", "gemini-3-flash"
USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def vendor(model: str = OLD, **changes: Any) -> Vendor:
    table = provider("gemini")
    fields = {"title": table.title, "capabilities": table.capabilities, "models": table.models, **changes}
    return Vendor(model, **fields)


def outgoing(task: Task, to: Vendor, fields: dict[str, Any]) -> Outgoing:
    return WIRE.request(decode_request(task, json.dumps({"model": "chat", **fields}).encode()), to)


def sent(model: str = OLD, to: Vendor | None = None, **fields: Any) -> dict[str, Any]:
    """The body that goes to the vendor."""
    found: dict[str, Any] = json.loads(outgoing(Task.CHAT, to or vendor(model), {"messages": [USER], **fields}).body)
    return found


def contents(*messages: dict[str, Any], model: str = OLD) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sent(model, messages=list(messages))["contents"]
    return found


def refusal(model: str = OLD, to: Vendor | None = None, **fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as found:
        sent(model, to, **fields)
    return found.value


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "parts": list(parts)}


def model_turn(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "model", "parts": list(parts)}


def call(id: str = "c1", name: str = "weather", arguments: str = '{"city":"Ulm"}', **more: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def image(url: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


# Where it goes


@pytest.mark.parametrize(
    ("model", "stream", "path"),
    [
        (OLD, False, "/models/gemini-2.5-flash:generateContent"),
        (OLD, True, "/models/gemini-2.5-flash:streamGenerateContent?alt=sse"),
        ("models/gemini-2.5-flash", False, "/models/gemini-2.5-flash:generateContent"),
        ("tunedModels/a b", False, "/tunedModels/a%20b:generateContent"),
    ],
)
def test_the_path_names_model_and_method(model: str, stream: bool, path: str) -> None:
    found = outgoing(Task.CHAT, vendor(model), {"messages": [USER], "stream": stream})
    assert (found.path, found.headers) == (path, {})


# Requests


def test_only_what_the_caller_set_is_sent() -> None:
    assert sent() == {"contents": [user({"text": "Hi"})]}


def test_every_setting_has_its_name() -> None:
    found = sent(
        temperature=0.2, top_p=0.9, top_k=40, max_completion_tokens=256, stop="END", seed=1, n=1,
        presence_penalty=0.1, frequency_penalty=0.3, parallel_tool_calls=True, stream_options={"include_usage": True},
    )  # fmt: skip
    assert found["generationConfig"] == {
        "temperature": 0.2, "topP": 0.9, "topK": 40, "maxOutputTokens": 256, "stopSequences": ["END"], "seed": 1,
        "presencePenalty": 0.1, "frequencyPenalty": 0.3,
    }  # fmt: skip


def test_fields_by_the_apis_own_names_are_kept() -> None:
    own: dict[str, Any] = {
        "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
        "cachedContent": "cachedContents/1",
        "labels": {"team": "a"},
        "serviceTier": "flex",
    }
    config = {"mediaResolution": "MEDIA_RESOLUTION_LOW", "temperature": 1.0}
    found = sent(temperature=0.5, generationConfig=config, **own)
    assert found["generationConfig"] == {"mediaResolution": "MEDIA_RESOLUTION_LOW", "temperature": 0.5}
    assert {name: found[name] for name in own} == own


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"user": "u1"}, "user"),
        ({"logprobs": True}, "logprobs"),
        ({"generationConfig": 1}, "generationConfig"),
        ({"n": 2}, "n"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"messages": [{**USER, "cache_control": {"type": "ephemeral"}}]}, "messages"),
        ({"messages": [{**image(PIXEL), "role": "system"}]}, "messages"),
        ({"messages": [{**image(PIXEL), "role": "tool", "tool_call_id": "c"}]}, "messages"),
        ({"messages": [{"role": "tool", "tool_call_id": "c9", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [call(arguments="[1]")]}]}, "messages"),
        ({"messages": [image("data:image/png;base64,")]}, "messages"),
        ({"reasoning_effort": "max"}, "reasoning_effort"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert error.status == 400


@pytest.mark.parametrize(
    ("capability", "fields"),
    [
        ("tools", {"tools": [TOOL]}),
        ("vision", {"messages": [image(PIXEL)]}),
        ("json_schema", {"response_format": {"type": "json_object"}}),
        ("reasoning", {"reasoning_effort": "low"}),
    ],
)
def test_a_vendor_without_the_capability_refuses(capability: str, fields: dict[str, Any]) -> None:
    every = provider("gemini").capabilities
    assert capability in refusal(to=vendor(capabilities=every - {capability}), **fields).message
    assert sent(**fields)


def test_what_says_nothing_is_no_obstacle() -> None:
    echoed: dict[str, Any] = {
        "role": "assistant",
        "content": "Hello",
        "refusal": None,
        "annotations": [],
    }
    assert contents(USER, echoed) == [user({"text": "Hi"}), model_turn({"text": "Hello"})]


def test_system_messages_are_the_instruction() -> None:
    found = sent(messages=[{"role": "system", "content": "A"}, USER, {"role": "developer", "content": "B"}])
    assert found == {"contents": [user({"text": "Hi"})], "systemInstruction": {"parts": [{"text": "A\n\nB"}]}}


def test_neighbours_of_one_role_are_one_turn() -> None:
    bot = {"role": "assistant", "content": "1"}
    assert contents(USER, USER, bot, {"role": "assistant", "content": ""}, bot, USER) == [
        user({"text": "Hi"}, {"text": "Hi"}),
        model_turn({"text": "1"}, {"text": "1"}),
        user({"text": "Hi"}),
    ]


def test_a_turn_with_nothing_in_it_is_none() -> None:
    assert contents({"role": "assistant", "content": None}, USER) == [user({"text": "Hi"})]


@pytest.mark.parametrize(
    ("url", "part"),
    [
        (PIXEL, {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}),
        ("https://x.y/A.JPG?w=1", {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://x.y/A.JPG?w=1"}}),
        ("https://x.y/image", {"fileData": {"fileUri": "https://x.y/image"}}),
    ],
)
def test_images(url: str, part: dict[str, Any]) -> None:
    assert contents(image(url)) == [user(part)]


def test_tools() -> None:
    bare = {"type": "function", "function": {"name": "now"}}
    declared = [
        {"name": "weather", "description": "d", "parametersJsonSchema": SCHEMA},
        {"name": "now", "parametersJsonSchema": {"type": "object", "properties": {}}},
    ]
    found = sent(tools=[TOOL, bare])
    assert found["tools"] == [{"functionDeclarations": declared}]
    assert "toolConfig" not in found


@pytest.mark.parametrize(
    ("choice", "strict", "config"),
    [
        ("auto", False, {"mode": "AUTO"}),
        ("none", True, {"mode": "NONE"}),
        ("required", True, {"mode": "ANY"}),
        ("auto", True, {"mode": "VALIDATED"}),
        (None, True, {"mode": "VALIDATED"}),
        ({"type": "function", "function": {"name": "f"}}, True, {"mode": "ANY", "allowedFunctionNames": ["f"]}),
    ],
)
def test_tool_choice(choice: Any, strict: bool, config: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {**TOOL["function"], "strict": strict}}  # type: ignore[dict-item]
    assert sent(tools=[tool], tool_choice=choice)["toolConfig"] == {"functionCallingConfig": config}


def test_calls_and_their_results() -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [call(), call("c2", "now", ""), call("", "later")]}
    results: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "noon"}]},
        {"role": "tool", "name": "later", "content": "x"},
    ]
    assert contents(USER, calls, *results, USER) == [
        user({"text": "Hi"}),
        model_turn(
            {"functionCall": {"id": "c1", "name": "weather", "args": {"city": "Ulm"}}},
            {"functionCall": {"id": "c2", "name": "now", "args": {}}},
            {"functionCall": {"name": "later", "args": {"city": "Ulm"}}},
        ),
        user(
            {"functionResponse": {"id": "c1", "name": "weather", "response": {"result": "sun"}}},
            {"functionResponse": {"id": "c2", "name": "now", "response": {"result": "noon"}}},
            {"functionResponse": {"name": "later", "response": {"result": "x"}}},
            {"text": "Hi"},
        ),
    ]


def test_the_numbers_in_a_calls_arguments_keep_their_digits() -> None:
    body = outgoing(
        Task.CHAT,
        vendor(),
        {"messages": [{"role": "assistant", "tool_calls": [call(arguments='{"x":12345678901234567890.10}')]}]},
    ).body
    assert b"12345678901234567890.10" in body


def test_the_signature_of_a_call_goes_back_with_it() -> None:
    parts = contents({"role": "assistant", "tool_calls": [call(signature="c2ln"), call("c2")]}, model=NEW)[0]["parts"]
    assert [p.get("thoughtSignature") for p in parts] == ["c2ln", None]


@pytest.mark.parametrize(
    ("model", "signatures"),
    [
        (OLD, [None, None]),
        ("gemini-2.0-flash", [None, None]),
        (NEW, ["skip_thought_signature_validator", None]),
        ("gemini-flash-latest", ["skip_thought_signature_validator", None]),
        ("gemma-3-27b", [None, None]),
    ],
)
def test_calls_of_unknown_origin_are_marked_where_a_signature_is_demanded(
    model: str, signatures: list[str | None]
) -> None:
    parts = contents({"role": "assistant", "tool_calls": [call(), call("c2")]}, model=model)[0]["parts"]
    assert [p.get("thoughtSignature") for p in parts] == signatures


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ({"content": "Hi", "reasoning_content": "hm"}, [{"text": "hm", "thought": True}, {"text": "Hi"}]),
        ({"content": "Hi", "reasoning_signature": "s"}, [{"text": "Hi", "thoughtSignature": "s"}]),
        (
            {"content": "", "reasoning_content": "hm", "reasoning_signature": "s"},
            [{"text": "hm", "thought": True, "thoughtSignature": "s"}],
        ),
        ({"content": "", "reasoning_signature": "s"}, [{"text": "", "thoughtSignature": "s"}]),
    ],
)
def test_reasoning_and_signatures_go_back(message: dict[str, str], parts: list[dict[str, Any]]) -> None:
    assert contents({"role": "assistant", **message}) == [model_turn(*parts)]


@pytest.mark.parametrize(
    ("model", "effort", "config"),
    [
        (OLD, "none", {"thinkingBudget": 0}),
        (OLD, "low", {"includeThoughts": True, "thinkingBudget": 1024}),
        ("gemini-2.5-pro", "high", {"includeThoughts": True, "thinkingBudget": 24576}),
        (NEW, "minimal", {"includeThoughts": True, "thinkingLevel": "MINIMAL"}),
        ("models/gemini-3.8-flash", "xhigh", {"includeThoughts": True, "thinkingLevel": "XHIGH"}),
    ],
)
def test_reasoning_effort(model: str, effort: str, config: dict[str, Any]) -> None:
    assert sent(model, reasoning_effort=effort)["generationConfig"] == {"thinkingConfig": config}


@pytest.mark.parametrize(
    ("model", "effort", "known"),
    [
        ("gemini-2.5-pro", "none", "minimal, low, medium, high."),
        (NEW, "none", "minimal, low, medium, high, xhigh."),
        ("gemini-2.0-flash", "low", "none."),
    ],
)
def test_an_effort_that_the_model_does_not_have(model: str, effort: str, known: str) -> None:
    assert refusal(model, reasoning_effort=effort).message == (
        f"{model} has no reasoning_effort {effort!r}. It has: {known}"
    )


def test_json() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    assert sent(response_format={"type": "json_object"})["generationConfig"] == {"responseMimeType": "application/json"}
    assert sent(response_format=schema)["generationConfig"] == {
        "responseMimeType": "application/json",
        "responseJsonSchema": SCHEMA,
    }


# Embeddings


def embed(model: str = "gemini-embedding-001", **fields: Any) -> tuple[str, dict[str, Any]]:
    found = outgoing(Task.EMBEDDING, vendor(model), fields)
    return found.path, json.loads(found.body)


def test_one_text() -> None:
    path = "/models/gemini-embedding-001:embedContent"
    one = {"content": {"parts": [{"text": "hi"}]}}
    assert embed(input="hi", encoding_format="base64") == (path, one)
    assert embed(input=["hi"], dimensions=768, taskType="RETRIEVAL_QUERY", title="t") == (
        path,
        {**one, "outputDimensionality": 768, "taskType": "RETRIEVAL_QUERY", "title": "t"},
    )


def test_several_texts() -> None:
    path, body = embed("models/gemini-embedding-001", input=["a", "b"], dimensions=8)
    assert path == "/models/gemini-embedding-001:batchEmbedContents"
    assert body == {
        "requests": [
            {
                "model": "models/gemini-embedding-001",
                "content": {"parts": [{"text": text}]},
                "outputDimensionality": 8,
            }
            for text in "ab"
        ]
    }


@pytest.mark.parametrize(
    "fields", [{"input": [1, 2]}, {"input": [[1]]}, {}, {"input": "x", "user": "u"}, {"input": "x", "dimensions": "8"}]
)
def test_an_embedding_request_that_it_cannot_do(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        embed(**fields)


# The table


def test_the_table_knows_the_formats_tasks() -> None:
    assert WIRE.tasks == {Task.CHAT, Task.EMBEDDING}
    assert msgspec.structs.asdict(provider("gemini").speaking("openai"))["auth"] == "bearer"
