"""What the server of an engine speaks: all that clients speak, at the paths that they use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from byzerllm.errors import InvalidInput, UpstreamError
from byzerllm.wire.base import BAD_JSON, Request, Task
from byzerllm.wire.openai import SURFACES, OpenAIWire

_ADDRESS = re.compile(r"\s*(?!data:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_PLACES = (b"_url", b"input_", b"\\u")  # the last: a name may be escaped
_NO_MEDIA = frozenset(("model", "stream", "prompt", "tools", "tool_choice", "response_format", "metadata"))


class EngineWire(OpenAIWire):
    """Pass-through. The base URL has no version: some paths have none.

    An engine would fetch the images and sounds that a request names from any address, those of its own machine and
    network included: only what is inside the request is let through.
    """

    name = "engine"
    asks_usage = True  # streams are asked for their tokens where the client does not

    def path(self, task: Task) -> str | None:
        return SURFACES[task]

    def body(self, request: Request, model: str, defaults: Mapping[str, msgspec.Raw]) -> bytes:
        check_media(request)
        return super().body(request, model, defaults)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """A code that only repeats the status tells a client nothing: it gets the one that our refusals have."""
        error = super().error(status, headers, body)
        if status == InvalidInput.default_status == error.vendor_code:
            error.vendor_code = InvalidInput.code
        return error


def check_media(request: Request) -> None:
    """Refuse a request that names an address to fetch something from.

    Raises:
        InvalidInput: names the field.
    """
    for field, value in request.fields.items():
        raw = bytes(value)
        if field in _NO_MEDIA or not any(place in raw for place in _PLACES):
            continue
        try:
            found = msgspec.json.decode(raw)
        except BAD_JSON:
            continue  # the engine says what is wrong with it
        if any(_ADDRESS.match(text) for text in _addresses(found)):
            raise InvalidInput(
                "Images and sounds are not fetched: put them into the request, as data:image/png;base64,...",
                param=field,
            )


def _addresses(value: Any) -> Iterator[str]:
    """The strings where a part of a message has its address: ``{"image_url": {"url": ...}}`` and what is like it."""
    if isinstance(value, list):
        for item in value:
            yield from _addresses(item)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name.endswith("_url") or name.startswith("input_"):
                strings = inner.values() if isinstance(inner, dict) else (inner,)
                yield from (text for text in strings if isinstance(text, str))
            else:
                yield from _addresses(inner)
