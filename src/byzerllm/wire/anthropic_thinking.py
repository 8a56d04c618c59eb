"""Anthropic's signed thinking blocks as the one text and one signature that a chat message has room for.

Claude wants its thinking back unchanged while it uses tools. One block is its text and its signature as they are. An
answer with several blocks, or with redacted ones, has all of them packed into a last signature that replaces the ones
before it, whether a client keeps the last signature of a stream or joins them all.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import msgspec

from byzerllm.errors import InvalidInput
from byzerllm.wire.base import BAD_JSON

_MARK = "~blocks~"  # in no signature of Anthropic's: those are base64
_BLOCKS = msgspec.json.Decoder(list[dict[str, str]])


def signature_of(blocks: Sequence[dict[str, str]]) -> str:
    """What stands for these blocks, the answer's thinking so far."""
    if len(blocks) == 1 and blocks[0]["type"] == "thinking":
        return blocks[0]["signature"]
    return _MARK + base64.b64encode(msgspec.json.encode(blocks)).decode("ascii")


def blocks_of(reasoning: str, signature: str) -> list[dict[str, Any]]:
    """The blocks to send back for a message's reasoning text and signature.

    Raises:
        InvalidInput: the signature was changed on its way.
    """
    _, packed, encoded = signature.rpartition(_MARK)
    if not packed:
        return [{"type": "thinking", "thinking": reasoning, "signature": signature}]
    try:
        return list(_BLOCKS.decode(base64.b64decode(encoded, validate=True)))
    except (binascii.Error, *BAD_JSON):
        raise InvalidInput(
            "A message's reasoning_signature is not what the answer had: send it back unchanged.", param="messages"
        ) from None
