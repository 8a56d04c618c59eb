"""An embedding request in neutral form, decoded from OpenAI's for the formats that are not OpenAI's."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from byzerllm.errors import InvalidInput
from byzerllm.wire.base import BAD_JSON, Request


class EmbeddingRequest(msgspec.Struct, frozen=True):
    """What the client wants vectors of. ``dimensions`` is None where it is not set; ``extra`` are the fields that are
    not OpenAI's. (How the vectors are packed for the client is not the vendor's business.)"""

    texts: tuple[str, ...]
    dimensions: int | None = None
    extra: dict[str, Any] = {}


class _Fields(msgspec.Struct):
    input: str | list[str]
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None


_KNOWN = frozenset((*_Fields.__struct_fields__, "model", "stream"))


def decode_embedding(request: Request) -> EmbeddingRequest:
    """The neutral form of an OpenAI embedding request.

    Raises:
        InvalidInput: a field of the wrong kind (token numbers as input included); the message names it.
    """
    try:
        fields = msgspec.json.decode(msgspec.json.encode(request.fields), type=_Fields)
        extra = {k: msgspec.json.decode(v) for k, v in request.fields.items() if k not in _KNOWN}
    except BAD_JSON as error:
        raise InvalidInput(f"The embedding request is not of OpenAI's form, with text as input: {error}.") from None
    texts = (fields.input,) if isinstance(fields.input, str) else tuple(fields.input)
    return EmbeddingRequest(texts, fields.dimensions, extra)
