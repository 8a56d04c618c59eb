"""Requests of Bedrock: what each field becomes, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.vendors.bedrock import MODEL

from byzerllm.errors import InvalidInput
from byzerllm.wire import translator
from byzerllm.wire.base import Outgoing, Task, Vendor, decode_request
from byzerllm.wire.bedrock import BedrockConverse

WIRE = BedrockConverse()
VENDOR = Vendor(
    MODEL,
    "Amazon Bedrock",
    capabilities=frozenset(("tools", "vision", "json_schema", "reasoning")),
    models={"cohere.embed": {"input_type": "search_document"}},
)
PNG = "data:image/png;base64,iVBORw0KGgo="
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
SPEC = {"toolSpec": {"name": "f", "description": "d", "inputSchema": {"json": {"type": "object"}}}}
USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def outgoing(task: Task = Task.CHAT, vendor: Vendor = VENDOR, **fields: Any) -> Outgoing:
    return WIRE.request(decode_request(task, json.dumps({"model": "m", **fields}).encode()), vendor)


def body(messages: list[dict[str, Any]] | None = None, vendor: Vendor = VENDOR, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(outgoing(vendor=vendor, messages=messages or [USER], **fields).body)
    return found


def turns(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = body(list(messages))["messages"]
    return found


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def embedding(model: str, **fields: Any) -> dict[str, Any]:
    vendor = Vendor(model, VENDOR.title, models=VENDOR.models)
    found: dict[str, Any] = json.loads(outgoing(Task.EMBEDDING, vendor, **fields).body)
    return found


# Requests


def test_it_is_the_format_of_its_name() -> None:
    assert isinstance(translator("bedrock"), BedrockConverse)


def test_only_what_the_caller_set_is_sent() -> None:
    assert body() == {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}


def test_paths_have_the_model_escaped() -> None:
    model = "/model/anthropic.claude-3-haiku-20240307-v1%3A0"
    assert outgoing(messages=[USER]).path == f"{model}/converse"
    assert outgoing(messages=[USER], stream=True).path == f"{model}/converse-stream"
    arn = Vendor("arn:aws:bedrock:us-east-1:1:inference-profile/us.x")
    assert outgoing(messages=[USER], vendor=arn).path == (
        "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fus.x/converse"
    )


def test_sampling_and_stop() -> None:
    found = body(max_tokens=9, temperature=0, top_p=0.5, stop="END", top_k=4, n=1)
    assert found["inferenceConfig"] == {"maxTokens": 9, "temperature": 0, "topP": 0.5, "stopSequences": ["END"]}
    assert found["additionalModelRequestFields"] == {"top_k": 4}


def test_system_messages_stand_apart() -> None:
    found = body([{"role": "system", "content": "a"}, USER, {"role": "developer", "content": "b"}])
    assert found["system"] == [{"text": "a"}, {"text": "b"}]
    assert len(found["messages"]) == 1


def test_turns_of_one_role_are_one_and_empty_texts_are_none() -> None:
    assert turns(USER, user({"type": "text", "text": "ho"}), {"role": "assistant", "content": ""}, USER) == [
        {"role": "user", "content": [{"text": "hi"}, {"text": "ho"}]},
        {"role": "assistant", "content": []},
        {"role": "user", "content": [{"text": "hi"}]},
    ]


def test_images() -> None:
    assert turns(user(image(PNG), image("data:image/jpg;base64,AAAA"))) == [
        {
            "role": "user",
            "content": [
                {"image": {"format": "png", "source": {"bytes": "iVBORw0KGgo="}}},
                {"image": {"format": "jpeg", "source": {"bytes": "AAAA"}}},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (None, None),
        ("auto", {"auto": {}}),
        ("required", {"any": {}}),
        ({"type": "function", "function": {"name": "f"}}, {"tool": {"name": "f"}}),
    ],
)
def test_tools(choice: object, sent: object) -> None:
    fields: dict[str, Any] = {"tools": [TOOL]} | ({"tool_choice": choice} if choice else {})
    expected = {"tools": [SPEC]} | ({"toolChoice": sent} if sent else {})
    assert body(**fields)["toolConfig"] == expected


def test_a_strict_tool_without_description() -> None:
    found = body(tools=[{"type": "function", "function": {"name": "f", "strict": True}}])
    schema = {"json": {"type": "object", "properties": {}}}
    assert found["toolConfig"]["tools"] == [{"toolSpec": {"name": "f", "inputSchema": schema, "strict": True}}]


def test_no_tool_may_be_called() -> None:
    assert "toolConfig" not in body(tools=[TOOL], tool_choice="none")
    history: list[dict[str, Any]] = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    with pytest.raises(InvalidInput, match="leave out 'tool_choice'"):
        body(history, tools=[TOOL], tool_choice="none")


def test_calls_and_their_results() -> None:
    second = {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}}
    found = turns(
        USER,
        {"role": "assistant", "content": "let me see", "tool_calls": [CALL, second]},
        {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": [image(PNG)]},
        USER,
    )
    assert found[1]["content"] == [
        {"text": "let me see"},
        {"toolUse": {"toolUseId": "c1", "name": "f", "input": {"x": 1}}},
        {"toolUse": {"toolUseId": "c2", "name": "g", "input": {}}},
    ]
    picture = {"image": {"format": "png", "source": {"bytes": "iVBORw0KGgo="}}}
    assert found[2] == {
        "role": "user",
        "content": [
            {"toolResult": {"toolUseId": "c1", "content": [{"text": "one"}]}},
            {"toolResult": {"toolUseId": "c2", "content": [picture]}},
            {"text": "hi"},
        ],
    }


def test_signed_reasoning_goes_back_before_the_rest() -> None:
    said = {"role": "assistant", "content": "x", "reasoning_content": "hm", "reasoning_signature": "sig"}
    assert turns(USER, said)[1]["content"] == [
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "sig"}}},
        {"text": "x"},
    ]
    unsigned = {"role": "assistant", "content": "x", "reasoning_content": "hm"}
    assert turns(USER, unsigned)[1]["content"] == [{"text": "x"}]


def test_output_config() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    found = body(response_format=form, reasoning_effort="low")["outputConfig"]
    assert found["effort"] == "low"
    assert found["textFormat"]["type"] == "json_schema"
    assert json.loads(found["textFormat"]["structure"]["jsonSchema"]["schema"]) == schema


def test_converses_own_fields_and_the_models() -> None:
    found = body(
        guardrailConfig={"guardrailIdentifier": "g"},
        additionalModelRequestFields={"a": 1},
        thinking={"type": "adaptive"},
        user=None,
        logprobs=False,
    )
    assert found["guardrailConfig"] == {"guardrailIdentifier": "g"}
    assert found["additionalModelRequestFields"] == {"a": 1, "thinking": {"type": "adaptive"}}
    with pytest.raises(InvalidInput, match="additionalModelRequestFields must be an object"):
        body(additionalModelRequestFields=[1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1), ("n", 2), ("presence_penalty", 0.1), ("frequency_penalty", 0.1), ("parallel_tool_calls", False),
        ("logprobs", True), ("logit_bias", {"1": 2}), ("response_format", {"type": "json_object"}),
    ],
)  # fmt: skip
def test_what_converse_has_no_field_for_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match="Amazon Bedrock has no") as refused:
        body(**{field: value})
    assert refused.value.param == field


def test_what_a_table_says_the_models_have_goes_to_them() -> None:
    able = Vendor(MODEL, "x", capabilities=frozenset(("seed",)))
    assert body(vendor=able, seed=3)["additionalModelRequestFields"] == {"seed": 3}
    assert "additionalModelRequestFields" not in body(parallel_tool_calls=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [TOOL]), ("reasoning_effort", "low"),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {}}}),
        ("messages", [user(image(PNG))]),
    ],
)  # fmt: skip
def test_what_the_table_does_not_list_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match="Plain has no"):
        outgoing(vendor=Vendor("m", "Plain"), **{"messages": [USER], field: value})


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (user(image("https://x/y.png")), "fetches no images"),
        (user(image("data:image/tiff;base64,AAAA")), "not as image/tiff"),
        ({"role": "system", "content": [image(PNG)]}, "no image in a system message"),
        ({"role": "user", "content": "x", "name": "Ann"}, r"messages\[\d\]\.name: leave it out"),
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, r"messages\[\d\]\.audio: leave it out"),
        ({"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "["}}]}, "call 'c'"),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "[]"}}]},
            "no JSON object",
        ),
    ],
)
def test_messages_that_are_refused(message: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        body([message])
    assert refused.value.param == "messages"


def test_a_message_field_without_content_is_no_loss() -> None:
    assert turns(USER, {"role": "assistant", "content": "x", "refusal": None, "annotations": []})[1] == {
        "role": "assistant",
        "content": [{"text": "x"}],
    }


# Embeddings


def test_titan() -> None:
    model = "amazon.titan-embed-text-v2:0"
    assert embedding(model, input="a") == {"inputText": "a"}
    found = embedding(model, input=["a"], dimensions=256, normalize=False, encoding_format="base64")
    assert found == {"inputText": "a", "dimensions": 256, "normalize": False}
    with pytest.raises(InvalidInput, match="one text a request, 'input' has 2"):
        embedding(model, input=["a", "b"])
    assert outgoing(Task.EMBEDDING, Vendor(model), input="a").path == "/model/amazon.titan-embed-text-v2%3A0/invoke"


def test_cohere() -> None:
    model = "cohere.embed-multilingual-v3"
    assert embedding(model, input=["a", "b"]) == {"texts": ["a", "b"], "input_type": "search_document"}
    found = embedding("cohere.embed-v4:0", input="a", dimensions=256, input_type="search_query")
    assert found == {"texts": ["a"], "input_type": "search_query", "output_dimension": 256}


def test_other_embeddings_are_refused() -> None:
    with pytest.raises(InvalidInput, match="embeddings of x are not known here"):
        embedding("x", input="a")
    with pytest.raises(InvalidInput, match="not of OpenAI's form"):
        embedding("cohere.embed-v4:0", input=[1, 2])
