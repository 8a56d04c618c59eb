"""A chat request in neutral form, decoded from OpenAI's for the formats that are not OpenAI's.

Only what the caller set is set here. Fields that no vendor but one knows stay in ``extra`` as they came.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Literal

import msgspec

from byzerllm.errors import InvalidInput
from byzerllm.wire.base import BAD_JSON, Request

Role = Literal["system", "user", "assistant", "tool"]

_ARGUMENTS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[^;,]*)*;base64,", re.ASCII)


class TextPart(msgspec.Struct, frozen=True):
    """``fields`` are the ones not understood, such as Anthropic's ``cache_control``."""

    text: str
    fields: dict[str, Any] = {}


class ImagePart(msgspec.Struct, frozen=True):
    """An image by address or as data. ``url`` is http(s) or ``data:``; ``detail`` is OpenAI's hint."""

    url: str
    detail: str | None = None
    fields: dict[str, Any] = {}

    def data(self) -> tuple[str, str] | None:
        """``(media type, base64)`` of a data URL, or None for an address.

        Raises:
            InvalidInput: a data URL that holds no base64.
        """
        if not self.url.startswith("data:"):
            return None
        found = _DATA_URL.match(self.url)
        encoded = self.url[found.end() :] if found else ""
        try:
            base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            encoded = ""
        if found is None or not encoded:
            raise InvalidInput("An image's data URL must be data:TYPE;base64,DATA.", param="messages")
        return found[1] or "image/jpeg", encoded


Part = TextPart | ImagePart


class Call(msgspec.Struct, frozen=True):
    """A tool call in an assistant message; ``arguments`` is JSON text. ``signature``: see ``events.ToolCall``."""

    id: str
    name: str
    arguments: str
    signature: str = ""

    def input(self) -> dict[str, msgspec.Raw]:
        """The arguments as an object, for the formats that have them as one.

        Raises:
            InvalidInput: they are none.
        """
        try:
            return _ARGUMENTS.decode(self.arguments)
        except BAD_JSON:
            raise InvalidInput(
                f"The arguments of the tool call {self.id or self.name!r} are no JSON object.", param="messages"
            ) from None


class Message(msgspec.Struct, frozen=True):
    """One turn. ``call_id`` names the call that a tool message answers; ``fields`` are the ones not understood."""

    role: Role
    parts: tuple[Part, ...] = ()
    calls: tuple[Call, ...] = ()
    call_id: str = ""
    reasoning: str = ""
    signature: str = ""
    name: str = ""
    fields: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(p.text for p in self.parts if isinstance(p, TextPart))


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool | None = None


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the client asks for. None: not set. ``tool_choice`` is auto, none, required or ``=name``."""

    messages: tuple[Message, ...]
    stream: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str | None = None
    parallel_tool_calls: bool | None = None
    json_schema: dict[str, Any] | None = None  # the schema itself
    json_schema_around: dict[str, Any] = {}  # its name, strict and description, where they were given
    json_object: bool = False
    reasoning_effort: str | None = None
    extra: dict[str, Any] = {}

    def system(self) -> str:
        """All system messages, joined by empty lines."""
        return "\n\n".join(m.text for m in self.messages if m.role == "system")

    def turns(self) -> tuple[Message, ...]:
        """The messages without the system ones."""
        return tuple(m for m in self.messages if m.role != "system")


class _Fields(msgspec.Struct):
    messages: list[dict[str, Any]]
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None


_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_KNOWN = frozenset((*_Fields.__struct_fields__, "model", "stream"))


def decode_chat(request: Request) -> ChatRequest:
    """The neutral form of an OpenAI chat request.

    Raises:
        InvalidInput: a field of the wrong kind; the message names it.
    """
    raw = msgspec.json.encode(request.fields)
    try:
        fields = msgspec.json.decode(raw, type=_Fields)
        extra = {k: msgspec.json.decode(v) for k, v in request.fields.items() if k not in _KNOWN}
    except BAD_JSON as error:
        raise InvalidInput(f"The chat request is not of OpenAI's form: {error}.") from None
    schema, as_object = _response_format(fields.response_format)
    stop = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ())
    return ChatRequest(
        messages=tuple(_message(number, m) for number, m in enumerate(fields.messages)),
        stream=request.stream,
        max_tokens=fields.max_completion_tokens or fields.max_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        stop=stop,
        seed=fields.seed,
        n=fields.n,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        tools=tuple(_tool(t) for t in fields.tools or ()),
        tool_choice=_tool_choice(fields.tool_choice),
        parallel_tool_calls=fields.parallel_tool_calls,
        json_schema=schema,
        json_schema_around=_around(fields.response_format) if schema is not None else {},
        json_object=as_object,
        reasoning_effort=fields.reasoning_effort,
        extra=extra,
    )


def _message(number: int, fields: dict[str, Any]) -> Message:
    where = f"messages[{number}]"
    role = _ROLES.get(str(fields.get("role")))
    if role is None:
        raise InvalidInput(f"{where}.role {fields.get('role')!r} is none of {', '.join(_ROLES)}.", param=where)
    known = ("role", "content", "tool_calls", "tool_call_id", "reasoning_content", "reasoning_signature", "name")
    return Message(
        role=role,
        parts=_parts(where, fields.get("content")),
        calls=tuple(_call(where, c) for c in fields.get("tool_calls") or ()),
        call_id=str(fields.get("tool_call_id") or ""),
        reasoning=str(fields.get("reasoning_content") or ""),
        signature=str(fields.get("reasoning_signature") or ""),
        name=str(fields.get("name") or ""),
        fields={k: v for k, v in fields.items() if k not in known},
    )


def _parts(where: str, content: Any) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    if not isinstance(content, list):
        raise InvalidInput(f"{where}.content must be a text or a list of parts.", param=where)
    return tuple(_part(f"{where}.content[{number}]", p) for number, p in enumerate(content))


def _part(where: str, part: Any) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal") and isinstance(part.get("text") or part.get("refusal"), str):
        return TextPart(part.get("text") or part["refusal"], _others(part, "text", "refusal"))
    if kind == "text":
        return TextPart("", _others(part, "text"))
    if kind == "image_url":
        image = part.get("image_url")
        image = {"url": image} if isinstance(image, str) else image
        if isinstance(image, dict) and isinstance(image.get("url"), str):
            others = _others(part, "image_url") | _others(image, "url", "detail")
            return ImagePart(image["url"], image.get("detail"), others)
    raise InvalidInput(f"{where} of type {kind!r} cannot be sent to this instance's vendor.", param=where)


def _others(fields: dict[str, Any], *known: str) -> dict[str, Any]:
    """What else was set; SDKs write out a good deal that is empty."""
    return {name: value for name, value in fields.items() if name not in ("type", *known) and value}


def _call(where: str, call: Any) -> Call:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidInput(f"{where}.tool_calls must hold function calls.", param=where)
    return Call(
        id=str(call.get("id") or ""),
        name=function["name"],
        arguments=str(function.get("arguments") or "{}"),
        signature=str(call.get("signature") or ""),
    )


def _tool(tool: dict[str, Any]) -> Tool:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidInput("Only tools of type 'function' can be sent to this instance's vendor.", param="tools")
    return Tool(
        name=function["name"],
        description=str(function.get("description") or ""),
        parameters=function.get("parameters") or {"type": "object", "properties": {}},
        strict=function.get("strict"),
    )


def _tool_choice(choice: str | dict[str, Any] | None) -> str | None:
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        if not isinstance(name, str):
            raise InvalidInput("tool_choice names no function.", param="tool_choice")
        return f"={name}"
    if choice not in (None, "auto", "none", "required"):
        raise InvalidInput(f"tool_choice {choice!r} is none of auto, none, required.", param="tool_choice")
    return choice


def _around(form: dict[str, Any] | None) -> dict[str, Any]:
    sent: dict[str, Any] = (form or {}).get("json_schema") or {}
    return {name: value for name, value in sent.items() if name != "schema" and value is not None}


def _response_format(form: dict[str, Any] | None) -> tuple[dict[str, Any] | None, bool]:
    if form is None or form.get("type") == "text":
        return None, False
    if form.get("type") == "json_object":
        return None, True
    schema = (form.get("json_schema") or {}).get("schema")
    if form.get("type") != "json_schema" or not isinstance(schema, dict):
        raise InvalidInput("response_format must be text, json_object or a json_schema.", param="response_format")
    return schema, False
