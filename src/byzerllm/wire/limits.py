"""What a format has no field for is refused by name, never dropped."""

from __future__ import annotations

from collections.abc import Collection

from byzerllm.errors import InvalidInput
from byzerllm.wire.base import Vendor
from byzerllm.wire.chat import ChatRequest, ImagePart

_ALWAYS = frozenset(("messages", "stream", "extra", "json_schema_around"))
_AS_SENT = {"json_schema": "response_format", "json_object": "response_format"}
# Values that ask for nothing more than an upstream without the field does anyway.
_HARMLESS = {"n": (1,), "tool_choice": ("auto", "none"), "parallel_tool_calls": (True,)}


def check_messages(
    chat: ChatRequest,
    vendor: Vendor,
    *,
    fields: Collection[str] | None = (),
    part_fields: Collection[str] = (),
    names: bool = False,
    detail: bool = False,
) -> None:
    """Refuse what messages and their parts carry and the format has no place for. ``fields`` and ``part_fields`` it
    has (None: the format looks at those of messages itself); ``names`` of participants and an image's ``detail`` too,
    where true. A tool's name goes with its call, and ``detail: auto`` asks for nothing.

    Raises:
        InvalidInput: names the first one, where it stands, and the vendor.
    """
    for number, message in enumerate(chat.messages):
        lost = [f for f, value in message.fields.items() if value and fields is not None and f not in fields]
        if message.name and message.role != "tool" and not names:
            lost.append("name")
        for part in message.parts:
            lost += [f"content.{f}" for f in part.fields if f not in part_fields]
            if isinstance(part, ImagePart) and part.detail not in (None, "auto") and not detail:
                lost.append("content.image_url.detail")
        if lost:
            raise InvalidInput(
                f"{vendor.title} has nothing for messages[{number}].{lost[0]}: leave it out.", param="messages"
            )


def check_fields(
    chat: ChatRequest, vendor: Vendor, known: Collection[str], extra: Collection[str] = (), *, names: bool = False
) -> None:
    """Refuse what the client set and the format cannot say. ``known`` are fields of ``ChatRequest``, ``extra`` the
    vendor's own top-level fields. Images are refused, and tool calls unless ``tools`` is known; ``names`` as above.

    Raises:
        InvalidInput: names the first such field and the vendor.
    """
    for field in ChatRequest.__struct_fields__:
        value = getattr(chat, field)
        unset = value is None or value is False or value == () or value in _HARMLESS.get(field, ())
        if field not in _ALWAYS and field not in known and not unset:
            raise _refusal(vendor, _AS_SENT.get(field, field))
    if chat.tools:
        vendor.needs("tools", "tools")
    for field, value in chat.extra.items():
        if value is not None and field not in extra:
            raise _refusal(vendor, field)
    if any(tool.strict for tool in chat.tools):
        raise _refusal(vendor, "strict")
    check_messages(chat, vendor, names=names)
    for message in chat.messages:
        if any(isinstance(part, ImagePart) for part in message.parts):
            raise InvalidInput(f"{vendor.title} has no vision: leave out the images.", param="messages")
        if "tools" not in known and (message.calls or message.role == "tool"):
            raise InvalidInput(f"{vendor.title} has no tools: leave out the tool calls.", param="messages")


def _refusal(vendor: Vendor, field: str) -> InvalidInput:
    return InvalidInput(f"{vendor.title} has no {field} in this format: leave it out.", param=field)


def called_functions(chat: ChatRequest) -> dict[str, str]:
    """The names of the functions that assistant messages called, by the id of the call.

    Raises:
        InvalidInput: a message holds several calls; formats that ask for this have room for one.
    """
    found: dict[str, str] = {}
    for message in chat.messages:
        if len(message.calls) > 1:
            raise InvalidInput("A message can hold only one tool call here.", param="messages")
        found |= {call.id: call.name for call in message.calls}
    return found
