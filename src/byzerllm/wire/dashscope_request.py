"""Requests in DashScope's own form: chats for the text and the multimodal path, and embeddings.

Facts: alibabacloud.com/help/en/model-studio/qwen-api-via-dashscope.
"""

from __future__ import annotations

from typing import Any

from byzerllm.errors import InvalidInput
from byzerllm.wire.base import Vendor
from byzerllm.wire.chat import Call, ChatRequest, ImagePart, Message, Part, TextPart
from byzerllm.wire.embedding import EmbeddingRequest
from byzerllm.wire.limits import check_messages

Fields = dict[str, Any]

_TEXT = "/services/aigc/text-generation/generation"
_MULTIMODAL = "/services/aigc/multimodal-generation/generation"

# Every other field that the client adds goes into the parameters, where the vendor's SDK puts any name that it does
# not know too. These are OpenAI's and would only be overheard, or change the answer's form.
_OPENAI_ONLY = frozenset((
    "audio", "function_call", "functions", "logit_bias", "logprobs", "metadata", "modalities", "moderation",
    "prediction", "prompt_cache_key", "prompt_cache_options", "safety_identifier", "service_tier", "store",
    "top_logprobs", "user", "verbosity", "web_search_options",
))  # fmt: skip


def chat_fields(chat: ChatRequest, vendor: Vendor) -> tuple[str, Fields]:
    """The path for the model, and the body.

    Raises:
        InvalidInput: the request asks for what the vendor cannot do.
    """
    _check(chat, vendor)
    multimodal = vendor.fact("path") == "multimodal"
    messages = [_message(m, vendor, multimodal) for m in chat.messages]
    fields = {"model": vendor.model, "input": {"messages": messages}, "parameters": _parameters(chat, vendor)}
    return _MULTIMODAL if multimodal else _TEXT, fields


def _check(chat: ChatRequest, vendor: Vendor) -> None:
    check_messages(chat, vendor, fields=None, names=True)
    for field in chat.extra:
        if field in _OPENAI_ONLY:
            vendor.needs(field, field)
    if (chat.n or 1) > 1:
        vendor.needs("n", "n")
    if chat.frequency_penalty is not None:
        vendor.needs("frequency_penalty", "frequency_penalty")
    if chat.tool_choice == "required":
        vendor.needs("tool_choice 'required'", "tool_choice")
    if chat.json_schema is not None or chat.json_object:
        vendor.needs("json_schema", "response_format")
    if chat.tools:
        vendor.needs("tools", "tools")


def _parameters(chat: ChatRequest, vendor: Vendor) -> Fields:
    own: Fields = {
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "top_k": chat.top_k,
        "max_tokens": chat.max_tokens,
        "stop": list(chat.stop) or None,
        "seed": chat.seed,
        "presence_penalty": chat.presence_penalty,
        "response_format": _response_format(chat),
        "tools": [_tool(t.name, t.description, t.parameters, t.strict) for t in chat.tools] or None,
        "tool_choice": _tool_choice(chat.tool_choice),
        "parallel_tool_calls": chat.parallel_tool_calls,
        **_thinking(chat.reasoning_effort, vendor),
    }
    given = {name: value for name, value in own.items() if value is not None}
    # Pieces instead of the whole text again and again: the only form that thinking models have.
    return {**chat.extra, **given, "result_format": "message", "incremental_output": True}


def _response_format(chat: ChatRequest) -> Fields | None:
    if chat.json_schema is not None:
        named = {"name": "answer", **chat.json_schema_around}  # a name is demanded, and has no effect
        return {"type": "json_schema", "json_schema": {**named, "schema": chat.json_schema}}
    return {"type": "json_object"} if chat.json_object else None


def _tool(name: str, description: str, schema: Fields, strict: bool | None) -> Fields:
    function: Fields = {"name": name, "description": description, "parameters": schema}
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


def _tool_choice(choice: str | None) -> str | Fields | None:
    if choice is not None and choice.startswith("="):
        return {"type": "function", "function": {"name": choice[1:]}}
    return choice


def _thinking(effort: str | None, vendor: Vendor) -> Fields:
    """The table says how many tokens of thinking an effort is; 0 is none."""
    if effort is None:
        return {}
    vendor.needs("reasoning", "reasoning_effort")
    budgets: dict[str, int] = vendor.fact("thinking") or {}
    if effort not in budgets:
        raise InvalidInput(
            f"{vendor.model} has no reasoning_effort {effort!r}. It has: {', '.join(budgets) or 'none'}.",
            param="reasoning_effort",
        )
    budget = budgets[effort]
    return {"enable_thinking": True, "thinking_budget": budget} if budget else {"enable_thinking": False}


def _message(message: Message, vendor: Vendor, multimodal: bool) -> Fields:
    """OpenAI's form but for the content; fields of the vendor's own, as ``partial``, stay."""
    fields: Fields = {name: value for name, value in message.fields.items() if value is not None}
    fields["role"] = message.role
    fields["content"] = _content(message.parts, vendor, multimodal)
    if message.name:
        fields["name"] = message.name
    if message.reasoning:
        fields["reasoning_content"] = message.reasoning
    if message.calls:
        fields["tool_calls"] = [_call(index, call) for index, call in enumerate(message.calls)]
    if message.call_id:
        fields["tool_call_id"] = message.call_id
    return fields


def _content(parts: tuple[Part, ...], vendor: Vendor, multimodal: bool) -> str | list[Fields]:
    if multimodal:
        return [_part(part, vendor) for part in parts]
    if any(isinstance(part, ImagePart) for part in parts):
        raise InvalidInput(
            f"{vendor.model} takes no images. (A model with vision that is not known as one can be deployed as "
            "saas/qianwen_vl.)",
            param="messages",
        )
    return "".join(part.text for part in parts if isinstance(part, TextPart))


def _part(part: Part, vendor: Vendor) -> Fields:
    if isinstance(part, TextPart):
        return {"text": part.text}
    vendor.needs("vision", "messages")
    part.data()  # refuses a data URL that holds none
    return {"image": part.url}


def _call(index: int, call: Call) -> Fields:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "index": index, "function": function}


def embedding_fields(request: EmbeddingRequest, vendor: Vendor) -> Fields:
    """The body of a request for embeddings; further fields go into the parameters, as ``text_type``.

    Raises:
        InvalidInput: a field that only OpenAI has.
    """
    for field in request.extra:
        if field in _OPENAI_ONLY:
            vendor.needs(field, field)
    parameters = dict(request.extra)
    if request.dimensions is not None:
        parameters["dimension"] = request.dimensions
    fields: Fields = {"model": vendor.model, "input": {"texts": list(request.texts)}}
    return {**fields, "parameters": parameters} if parameters else fields
