"""A chat request as a body for OpenAI's Responses API. Facts: platform.openai.com/docs/api-reference/responses."""

from __future__ import annotations

from typing import Any

import msgspec

from byzerllm.errors import InvalidInput
from byzerllm.wire.anthropic_thinking import blocks_of
from byzerllm.wire.base import Request, Vendor
from byzerllm.wire.chat import Call, ChatRequest, ImagePart, Message, Part, Tool, decode_chat
from byzerllm.wire.limits import check_messages

_Fields = dict[str, Any]

# Fields of the chat API that this one has nothing for, and two of its own that no chat answer could be made of. Every
# other field that we do not know goes up as it is: the API refuses by name what it does not know.
_ABSENT = frozenset(
    (
        "audio",
        "background",
        "function_call",
        "functions",
        "input",
        "logit_bias",
        "logprobs",
        "modalities",
        "prediction",
        "top_logprobs",
        "web_search_options",
    )
)


def responses_body(request: Request, vendor: Vendor) -> bytes:
    """The request's JSON; ``saas.reasoning_effort`` holds where the caller sets none.

    Raises:
        InvalidInput: it asks for what the API or the vendor cannot do, or is malformed.
    """
    chat = decode_chat(request)
    _refuse_absent(chat, vendor)
    check_messages(chat, vendor, detail=True)
    own = {name: value for name, value in chat.extra.items() if name not in _ABSENT}
    body: _Fields = {
        "model": vendor.model,
        "input": [item for number, m in enumerate(chat.messages) for item in _items(number, m, vendor)],
        "stream": chat.stream or None,
        "max_output_tokens": chat.max_tokens,
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        **_tools(chat, vendor),
        "reasoning": _reasoning(chat, vendor, own),
        "text": _text(chat, vendor, own),
    }
    return msgspec.json.encode({**_without_none(own), **_without_none(body)})


def _refuse_absent(chat: ChatRequest, vendor: Vendor) -> None:
    asked = [name for name in ("stop", "presence_penalty", "frequency_penalty") if getattr(chat, name)]
    asked += [name for name in ("seed", "top_k") if getattr(chat, name) is not None]
    asked += [name for name in sorted(_ABSENT & chat.extra.keys()) if chat.extra[name]]
    if chat.n not in (None, 1):
        asked.append("n")
    if asked:
        raise InvalidInput(
            f"{vendor.title} has no {', '.join(asked)} in the Responses API: leave it out.", param=asked[0]
        )


def _items(number: int, message: Message, vendor: Vendor) -> list[_Fields]:
    """The items of one message; its images, and what it has beside its content, go the same way."""
    where = f"messages[{number}]"
    if message.role == "assistant":
        return _answer_items(where, message, vendor)
    content = _content(message, vendor)
    if message.role != "tool":
        return [{"role": message.role, "content": content}]
    if not message.call_id:
        raise InvalidInput(f"{where} of role tool must have a tool_call_id.", param="messages")
    return [{"type": "function_call_output", "call_id": message.call_id, "output": content}]


def _content(message: Message, vendor: Vendor) -> str | list[_Fields]:
    if any(isinstance(p, ImagePart) for p in message.parts):
        return [_part(p, vendor) for p in message.parts]
    return message.text


def _part(part: Part, vendor: Vendor) -> _Fields:
    if not isinstance(part, ImagePart):
        return {"type": "input_text", "text": part.text}
    vendor.needs("vision", "image_url")
    part.data()  # refuses a data URL that is none
    return _without_none({"type": "input_image", "image_url": part.url, "detail": part.detail})


def _answer_items(where: str, message: Message, vendor: Vendor) -> list[_Fields]:
    """What the model said, in the order in which it does: reasoning, text, calls."""
    if any(isinstance(p, ImagePart) for p in message.parts):
        raise InvalidInput(f"The Responses API takes no image in an assistant message ({where}).", param="messages")
    if message.calls:
        vendor.needs("tools", "tool_calls")
    said = [{"role": "assistant", "content": message.text}] if message.text else []
    return _reasoning_items(message) + said + [_call(c) for c in message.calls]


def _reasoning_items(message: Message) -> list[_Fields]:
    """The API takes reasoning back only encrypted, as ``responses.py`` packed it; other vendors' it cannot read."""
    blocks = blocks_of(message.reasoning, message.signature) if message.signature else []
    return [{**block, "summary": []} for block in blocks if block.get("type") == "reasoning"]


def _call(call: Call) -> _Fields:
    return {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}


def _tools(chat: ChatRequest, vendor: Vendor) -> _Fields:
    if chat.tools:
        vendor.needs("tools", "tools")
    choice: str | _Fields | None = chat.tool_choice
    if chat.tool_choice is not None and chat.tool_choice.startswith("="):
        choice = {"type": "function", "name": chat.tool_choice[1:]}
    return {
        "tools": [_tool(t) for t in chat.tools] or None,
        "tool_choice": choice,
        "parallel_tool_calls": chat.parallel_tool_calls,
    }


def _tool(tool: Tool) -> _Fields:
    """``strict`` is always said: left out it means true here, and false in the chat API."""
    fields: _Fields = {"type": "function", "name": tool.name, "parameters": tool.parameters}
    if tool.description:
        fields["description"] = tool.description
    return {**fields, "strict": bool(tool.strict)}


def _reasoning(chat: ChatRequest, vendor: Vendor, added: _Fields) -> _Fields | None:
    own = _object(added, "reasoning")
    effort = chat.reasoning_effort
    if effort is None and "effort" not in own:
        effort = vendor.params.get("reasoning_effort")
    if effort is not None:
        vendor.needs("reasoning", "reasoning_effort")
        own["effort"] = effort
    return own or None


def _text(chat: ChatRequest, vendor: Vendor, added: _Fields) -> _Fields | None:
    own = _object(added, "text")
    verbosity = added.pop("verbosity", None)  # the chat API's place for it
    if verbosity is not None:
        own["verbosity"] = verbosity
    if chat.json_object or chat.json_schema is not None:
        vendor.needs("json_schema", "response_format")
        own["format"] = {"type": "json_object"} if chat.json_object else _json_schema(chat)
    return own or None


def _json_schema(chat: ChatRequest) -> _Fields:
    """As the caller sent it, one level flatter. The API demands a name, which has no effect."""
    return {"type": "json_schema", "name": "answer", **chat.json_schema_around, "schema": chat.json_schema}


def _object(added: _Fields, name: str) -> _Fields:
    """Take one of the API's own objects out of what the caller added."""
    given = added.pop(name, None)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InvalidInput(f"'{name}' must be an object.", param=name)
    return given


def _without_none(fields: _Fields) -> _Fields:
    return {name: value for name, value in fields.items() if value is not None}
