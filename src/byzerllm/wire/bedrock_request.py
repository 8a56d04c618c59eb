"""Requests of Amazon Bedrock: Converse for chat, InvokeModel with the model's own body for embeddings."""

from __future__ import annotations

from typing import Any

import msgspec

from byzerllm.errors import InvalidInput
from byzerllm.wire.anthropic_thinking import blocks_of
from byzerllm.wire.base import Vendor
from byzerllm.wire.chat import Call, ChatRequest, ImagePart, Message, Part, TextPart
from byzerllm.wire.embedding import EmbeddingRequest
from byzerllm.wire.limits import check_messages

# What clients may say of Converse's own; every other unknown field is the model's, which refuses what it does not know.
_CONVERSE_FIELDS = frozenset((
    "additionalModelResponseFieldPaths", "guardrailConfig", "performanceConfig", "promptVariables", "requestMetadata",
    "serviceTier",
))  # fmt: skip
_MODEL_FIELDS = "additionalModelRequestFields"
_IMAGES = {"image/png": "png", "image/jpeg": "jpeg", "image/jpg": "jpeg", "image/gif": "gif", "image/webp": "webp"}

Fields = dict[str, Any]


def converse_body(chat: ChatRequest, vendor: Vendor) -> Fields:
    """The body of ``/converse`` and ``/converse-stream``.

    Raises:
        InvalidInput: Converse has no place for what is asked.
    """
    check_messages(chat, vendor)
    parts: Fields = {
        "messages": _messages(chat, vendor),
        "system": [block for m in chat.messages if m.role == "system" for block in _system(m, vendor)],
        "inferenceConfig": _set_only(
            maxTokens=chat.max_tokens, temperature=chat.temperature, topP=chat.top_p, stopSequences=list(chat.stop)
        ),
        "toolConfig": _tool_config(chat, vendor),
        "outputConfig": _output_config(chat, vendor),
        _MODEL_FIELDS: _model_fields(chat, vendor),
    }
    own = {name: value for name, value in chat.extra.items() if name in _CONVERSE_FIELDS}
    return {name: value for name, value in parts.items() if value or name == "messages"} | own


def _set_only(**fields: Any) -> Fields:
    return {name: value for name, value in fields.items() if value is not None and value != []}


def _model_fields(chat: ChatRequest, vendor: Vendor) -> Fields:
    """What goes to the model itself, beside Converse's fields."""
    given = chat.extra.get(_MODEL_FIELDS) or {}
    if not isinstance(given, dict):
        raise InvalidInput(f"{_MODEL_FIELDS} must be an object.", param=_MODEL_FIELDS)
    rare = _set_only(
        seed=chat.seed,
        n=None if chat.n == 1 else chat.n,
        presence_penalty=chat.presence_penalty,
        frequency_penalty=chat.frequency_penalty,
        parallel_tool_calls=chat.parallel_tool_calls if chat.parallel_tool_calls is False else None,
        logprobs=chat.extra.get("logprobs") or None,
        logit_bias=chat.extra.get("logit_bias") or None,
        json_object=chat.json_object or None,
    )
    for name in rare:
        vendor.needs(name, "response_format" if name == "json_object" else name)
    known = {*_CONVERSE_FIELDS, _MODEL_FIELDS, "logprobs", "logit_bias"}
    other = {name: value for name, value in chat.extra.items() if name not in known and value is not None}
    return _set_only(top_k=chat.top_k) | rare | other | given


def _tool_config(chat: ChatRequest, vendor: Vendor) -> Fields:
    if not chat.tools:
        return {}
    vendor.needs("tools", "tools")
    if chat.tool_choice == "none":
        if any(m.calls or m.role == "tool" for m in chat.messages):
            raise InvalidInput(
                f"{vendor.title} cannot keep a model from calling tools once the conversation has tool calls: "
                "leave out 'tool_choice'.",
                param="tool_choice",
            )
        return {}
    config: Fields = {
        "tools": [
            {
                "toolSpec": {
                    "name": tool.name,
                    **({"description": tool.description} if tool.description else {}),
                    "inputSchema": {"json": tool.parameters},
                    **({"strict": tool.strict} if tool.strict is not None else {}),
                }
            }
            for tool in chat.tools
        ]
    }
    if chat.tool_choice:
        kind = {"auto": "auto", "required": "any"}.get(chat.tool_choice)
        config["toolChoice"] = {kind: {}} if kind else {"tool": {"name": chat.tool_choice.removeprefix("=")}}
    return config


def _output_config(chat: ChatRequest, vendor: Vendor) -> Fields:
    config: Fields = {}
    if chat.json_schema is not None:
        vendor.needs("json_schema", "response_format")
        schema = msgspec.json.encode(chat.json_schema).decode()
        config["textFormat"] = {"type": "json_schema", "structure": {"jsonSchema": {"schema": schema}}}
    if chat.reasoning_effort is not None:
        vendor.needs("reasoning", "reasoning_effort")
        config["effort"] = chat.reasoning_effort
    return config


def _system(message: Message, vendor: Vendor) -> list[Fields]:
    if any(isinstance(part, ImagePart) for part in message.parts):
        raise InvalidInput(f"{vendor.title} takes no image in a system message.", param="messages")
    return _content(message.parts, vendor)


def _messages(chat: ChatRequest, vendor: Vendor) -> list[Fields]:
    """Turns of user and assistant by turns, as Converse wants them; the results of tools are the user's."""
    turns: list[Fields] = []
    for message in chat.turns():
        role = "assistant" if message.role == "assistant" else "user"
        if not turns or turns[-1]["role"] != role:
            turns.append({"role": role, "content": []})
        turns[-1]["content"] += _blocks(message, vendor)
    return turns


def _blocks(message: Message, vendor: Vendor) -> list[Fields]:
    content = _content(message.parts, vendor)
    if message.role == "tool":
        return [{"toolResult": {"toolUseId": message.call_id, "content": content}}]
    return [*_reasoning(message), *content, *(_tool_use(call) for call in message.calls)]


def _reasoning(message: Message) -> list[Fields]:
    """Only signed reasoning: no model wants to see any other again."""
    blocks = blocks_of(message.reasoning, message.signature) if message.signature else []
    return [{"reasoningContent": _reasoning_content(block)} for block in blocks]


def _reasoning_content(block: Fields) -> Fields:
    if block["type"] == "redacted_thinking":
        return {"redactedContent": block["data"]}
    return {"reasoningText": {"text": block["thinking"], "signature": block["signature"]}}


def _content(parts: tuple[Part, ...], vendor: Vendor) -> list[Fields]:
    """Texts and images; an empty text is none, as Converse refuses it."""
    blocks: list[Fields] = []
    for part in parts:
        if isinstance(part, ImagePart):
            blocks.append(_image(part, vendor))
        elif isinstance(part, TextPart) and part.text:
            blocks.append({"text": part.text})
    return blocks


def _image(part: ImagePart, vendor: Vendor) -> Fields:
    vendor.needs("vision", "image_url")
    data = part.data()
    if data is None:
        raise InvalidInput(
            f"{vendor.title} fetches no images: send them as data:TYPE;base64,DATA instead of an address.",
            param="messages",
        )
    kind, encoded = data
    if kind not in _IMAGES:
        raise InvalidInput(f"{vendor.title} takes images as {', '.join(_IMAGES)}, not as {kind}.", param="messages")
    return {"image": {"format": _IMAGES[kind], "source": {"bytes": encoded}}}


def _tool_use(call: Call) -> Fields:
    return {"toolUse": {"toolUseId": call.id, "name": call.name, "input": call.input()}}


def embedding_body(request: EmbeddingRequest, vendor: Vendor) -> Fields:
    """The body of ``/invoke`` for an embedding model. Fields that OpenAI's format does not know are the model's own.

    Raises:
        InvalidInput: another model than Titan's or Cohere's, or more texts than it takes.
    """
    texts = list(request.texts)
    if "cohere.embed" in vendor.model:
        kind = _set_only(input_type=vendor.fact("input_type"))
        return {"texts": texts} | kind | _set_only(output_dimension=request.dimensions) | request.extra
    if "titan-embed" not in vendor.model:
        raise InvalidInput(
            f"{vendor.title}: the embeddings of {vendor.model} are not known here, only those of titan-embed and "
            "cohere.embed models.",
            param="model",
        )
    if len(texts) != 1:
        raise InvalidInput(
            f"{vendor.model} embeds one text a request, 'input' has {len(texts)}: send them one by one.", param="input"
        )
    return {"inputText": texts[0]} | _set_only(dimensions=request.dimensions) | request.extra
