"""A chat request as a body for Anthropic's Messages API. Facts: platform.claude.com/docs/en/api/messages.

What differs between models comes from the vendor's table: ``max_output`` (sent where the caller sets no maximum, since
the API demands one), ``sampling`` and ``prefill`` (false: refused), ``json_schema`` (false: refused) and ``thinking``
(``adaptive``, ``budget`` or ``none``).
"""

from __future__ import annotations

from typing import Any

import msgspec

from byzerllm.errors import InvalidInput
from byzerllm.wire.anthropic_thinking import blocks_of
from byzerllm.wire.base import Vendor
from byzerllm.wire.chat import Call, ChatRequest, ImagePart, Message, Part, Tool
from byzerllm.wire.limits import check_messages

_Block = dict[str, Any]

# OpenAI's fields that Anthropic has nothing for. Every other field that we do not know goes up as it is: the API
# refuses by name what it does not know.
_ABSENT = frozenset(
    (
        "audio",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "modalities",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "store",
        "top_logprobs",
        "verbosity",
        "web_search_options",
    )
)
_CHOICES = {"auto": "auto", "none": "none", "required": "any"}
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
# The share of max_tokens that a model with a thinking budget may think for.
_SHARES = {"minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.95, "max": 0.95}
_LEAST_BUDGET = 1024


def messages_body(chat: ChatRequest, vendor: Vendor) -> bytes:
    """The request's JSON.

    Raises:
        InvalidInput: it asks for what Anthropic or the model cannot do, or is malformed.
    """
    _refuse_absent(chat, vendor)
    maximum = _max_tokens(chat, vendor)
    body: _Block = {"model": vendor.model, "max_tokens": maximum, "messages": _turns(chat, vendor)}
    if system := _system(chat, vendor):
        body["system"] = system
    if chat.stream:
        body["stream"] = True
    body.update(_sampling(chat, vendor))
    if chat.stop:
        body["stop_sequences"] = chat.stop
    body.update(_tools(chat, vendor))
    body.update(_thinking(chat, vendor, maximum))
    if output := _output_config(chat, vendor):
        body["output_config"] = output
    return msgspec.json.encode(_with_extra(body, chat.extra))


def _refuse_absent(chat: ChatRequest, vendor: Vendor) -> None:
    asked = [name for name in ("presence_penalty", "frequency_penalty") if getattr(chat, name)]
    asked += [name for name in sorted(_ABSENT & chat.extra.keys()) if chat.extra[name] not in (None, False)]
    if chat.n not in (None, 1):
        asked.append("n")
    if chat.seed is not None:
        asked.append("seed")
    if asked:
        raise InvalidInput(f"{vendor.title} has no {', '.join(asked)}: leave it out.", param=asked[0])
    if chat.json_object:
        raise InvalidInput(
            f"{vendor.title} has no json_object: give the schema, as response_format json_schema.",
            param="response_format",
        )


def _max_tokens(chat: ChatRequest, vendor: Vendor) -> int:
    maximum = chat.max_tokens if chat.max_tokens is not None else vendor.fact("max_output")
    if maximum is None:
        raise InvalidInput(f"{vendor.title} demands max_tokens, set it for {vendor.model}.", param="max_tokens")
    return int(maximum)


def _sampling(chat: ChatRequest, vendor: Vendor) -> _Block:
    given = {name: getattr(chat, name) for name in ("temperature", "top_p", "top_k")}
    given = {name: value for name, value in given.items() if value is not None}
    if vendor.fact("sampling") is False:
        for name, value in given.items():
            if name != "temperature":
                raise InvalidInput(f"{vendor.model} does not take {name}: leave it out.", param=name)
            if value != 1:
                raise InvalidInput(f"{vendor.model} takes no temperature but 1: leave it out.", param=name)
    return given


def _system(chat: ChatRequest, vendor: Vendor) -> str | list[_Block]:
    """A text, or blocks where a part of it has fields of Anthropic's own."""
    check_messages(chat, vendor, fields=("is_error",), part_fields=("cache_control",))
    for message in chat.messages:
        if message.role in ("system", "assistant") and any(isinstance(p, ImagePart) for p in message.parts):
            raise InvalidInput(f"Anthropic takes no image in a message of role {message.role}.", param="messages")
    parts = [p for m in chat.messages if m.role == "system" for p in m.parts]
    return [_part(p, vendor) for p in parts] if any(p.fields for p in parts) else chat.system()


def _turns(chat: ChatRequest, vendor: Vendor) -> list[_Block]:
    """The messages with those of one role in a row joined, as the API does itself; results of tools are the user's."""
    turns: list[_Block] = []
    for message in chat.turns():
        role = "user" if message.role == "tool" else message.role
        blocks = _blocks(message, vendor)
        if not blocks:  # an empty turn says nothing, and the API refuses it
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if turns and turns[-1]["role"] == "assistant" and vendor.fact("prefill") is False:
        raise InvalidInput(
            f"{vendor.model} does not continue an assistant's message: the last message must be of role user or tool.",
            param="messages",
        )
    return turns


def _blocks(message: Message, vendor: Vendor) -> list[_Block]:
    if message.role == "tool":
        return [_tool_result(message, vendor)]
    blocks = [_part(p, vendor) for p in message.parts if isinstance(p, ImagePart) or p.text]
    if message.role == "user":
        return blocks
    # Reasoning without a signature is not Claude's: the API takes none back.
    thinking = blocks_of(message.reasoning, message.signature) if message.signature else []
    return thinking + blocks + [_tool_use(c) for c in message.calls]


def _part(part: Part, vendor: Vendor) -> _Block:
    if not isinstance(part, ImagePart):
        return {"type": "text", "text": part.text, **part.fields}
    vendor.needs("vision", "image_url")
    data = part.data()
    if data is None:
        return {"type": "image", "source": {"type": "url", "url": part.url}, **part.fields}
    return {"type": "image", "source": {"type": "base64", "media_type": data[0], "data": data[1]}, **part.fields}


def _tool_use(call: Call) -> _Block:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": call.input()}


def _tool_result(message: Message, vendor: Vendor) -> _Block:
    if not message.call_id:
        raise InvalidInput("A message of role tool must have a tool_call_id.", param="messages")
    result: _Block = {"type": "tool_result", "tool_use_id": message.call_id}
    blocks = [_part(p, vendor) for p in message.parts if isinstance(p, ImagePart) or p.text]
    if blocks:
        result["content"] = blocks
    if message.fields.get("is_error") is True:
        result["is_error"] = True
    return result


def _tools(chat: ChatRequest, vendor: Vendor) -> _Block:
    fields: _Block = {}
    if chat.tools:
        vendor.needs("tools", "tools")
        fields["tools"] = [_tool(t) for t in chat.tools]
    kind = chat.tool_choice
    one_at_a_time = chat.parallel_tool_calls is False and kind != "none" and bool(chat.tools)
    if kind is None and not one_at_a_time:
        return fields
    choice: _Block = {"type": _CHOICES.get(kind or "auto", "tool")}
    if choice["type"] == "tool":
        choice["name"] = (kind or "")[1:]
    if one_at_a_time:
        choice["disable_parallel_tool_use"] = True
    return {**fields, "tool_choice": choice}


def _tool(tool: Tool) -> _Block:
    fields: _Block = {"name": tool.name, "input_schema": tool.parameters}
    if tool.description:
        fields["description"] = tool.description
    if tool.strict:
        fields["strict"] = True
    return fields


def _thinking(chat: ChatRequest, vendor: Vendor, maximum: int) -> _Block:
    effort = chat.reasoning_effort
    if effort is None:
        return {}
    vendor.needs("reasoning", "reasoning_effort")
    kind = vendor.fact("thinking")
    if kind not in ("adaptive", "budget"):
        raise InvalidInput(
            f"How {vendor.model} thinks is not known, or it does not: leave out reasoning_effort, or send 'thinking' "
            "as the vendor has it.",
            param="reasoning_effort",
        )
    if effort == "none":
        return {"thinking": {"type": "disabled"}}
    if effort not in _EFFORTS:
        known = ", ".join(("none", *_EFFORTS))
        raise InvalidInput(f"reasoning_effort {effort!r} is none of {known}.", param="reasoning_effort")
    if kind == "adaptive":  # its text is left out by newer models unless one asks for it
        return {"thinking": {"type": "adaptive", "display": "summarized"}}
    if maximum <= _LEAST_BUDGET:
        raise InvalidInput(
            f"{vendor.model} thinks for {_LEAST_BUDGET} tokens at least: with reasoning_effort, max_tokens must be "
            "above that.",
            param="max_tokens",
        )
    budget = max(_LEAST_BUDGET, int(maximum * _SHARES[effort]))
    return {"thinking": {"type": "enabled", "budget_tokens": budget}}


def _output_config(chat: ChatRequest, vendor: Vendor) -> _Block:
    output: _Block = {}
    if chat.reasoning_effort in _EFFORTS and vendor.fact("thinking") == "adaptive":
        output["effort"] = _EFFORTS[chat.reasoning_effort]
    if chat.json_schema is not None:
        vendor.needs("json_schema", "response_format")
        if vendor.fact("json_schema") is False:
            raise InvalidInput(f"{vendor.model} has no JSON schema output.", param="response_format")
        output["format"] = {"type": "json_schema", "schema": chat.json_schema}
    return output


def _with_extra(body: _Block, extra: dict[str, Any]) -> _Block:
    """The body with the fields that only Anthropic knows; OpenAI's ``user`` is its ``metadata.user_id``."""
    own = {name: value for name, value in extra.items() if value is not None and name not in _ABSENT}
    if "user" in own:
        metadata = own.get("metadata")
        own["metadata"] = {"user_id": own.pop("user"), **(metadata if isinstance(metadata, dict) else {})}
    output = own.get("output_config")
    if isinstance(output, dict):
        own["output_config"] = {**body.pop("output_config", {}), **output}
    twice = sorted(body.keys() & own.keys())
    if twice:
        raise InvalidInput(
            f"'{twice[0]}' is given twice: in Anthropic's form and through an OpenAI field that means the same.",
            param=twice[0],
        )
    return {**body, **own}
