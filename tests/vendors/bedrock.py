"""Amazon Bedrock's Converse and ConverseStream, as the API reference and the service model describe them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from tests.vendors.base import FakeVendor, Script, VendorError

from byzerllm.wire.events import Finish, Reasoning, Text, Tokens, ToolCall

MODEL = "anthropic.claude-3-haiku-20240307-v1:0"
REQUEST_ID = "0f6e3a2b-7c1d-4e5f-9a8b-1c2d3e4f5a6b"
STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "content_filtered",
}


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One message of the binary event stream; every header is a string."""
    block = b""
    for name, value in headers.items():
        block += (
            struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", 7, len(value.encode())) + value.encode()
        )
    prelude = struct.pack(">II", 16 + len(block) + len(payload), len(block))
    prelude += struct.pack(">I", zlib.crc32(prelude))
    message = prelude + block + payload
    return message + struct.pack(">I", zlib.crc32(message))


def event(kind: str, **payload: Any) -> bytes:
    """An event; AWS pads them, so that their lengths do not tell the text's."""
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    padded = payload | {"p": "abcdefghijk"[: len(kind) % 11]}
    return frame(headers, json.dumps(padded, ensure_ascii=False, separators=(",", ":")).encode())


def exception(kind: str, message: str) -> bytes:
    """An error inside a stream; nothing follows it."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return frame(headers, json.dumps({"message": message}).encode())


def usage_fields(tokens: Tokens) -> dict[str, int]:
    """Cached tokens are counted apart from the other input."""
    fields = {
        "inputTokens": tokens.prompt - tokens.cached,
        "outputTokens": tokens.completion,
        "totalTokens": tokens.prompt + tokens.completion,
    }
    if tokens.cached:
        fields |= {"cacheReadInputTokens": tokens.cached, "cacheWriteInputTokens": 0}
    return fields


def _blocks(script: Script) -> list[list[Any]]:
    """The script's pieces, those of one content block together."""
    blocks: list[list[Any]] = []
    for piece in script:
        if not isinstance(piece, Text | Reasoning | ToolCall):
            continue
        last = blocks[-1][-1] if blocks else None
        same = type(last) is type(piece) and getattr(last, "index", 0) == getattr(piece, "index", 0)
        if same:
            blocks[-1].append(piece)
        else:
            blocks.append([piece])
    return blocks


def _deltas(piece: Text | Reasoning | ToolCall) -> Iterator[dict[str, Any]]:
    if isinstance(piece, Text):
        yield {"text": piece.text}
    elif isinstance(piece, ToolCall):
        if piece.arguments:
            yield {"toolUse": {"input": piece.arguments}}
    else:
        if piece.text:
            yield {"reasoningContent": {"text": piece.text}}
        if piece.signature:
            yield {"reasoningContent": {"signature": piece.signature}}


def _pieces(script: Script) -> bytes:
    out = [event("messageStart", role="assistant")]
    for index, block in enumerate(_blocks(script)):
        first = block[0]
        if isinstance(first, ToolCall):  # no other block has a start
            start = {"toolUse": {"toolUseId": first.id, "name": first.name}}
            out.append(event("contentBlockStart", start=start, contentBlockIndex=index))
        out += [event("contentBlockDelta", delta=d, contentBlockIndex=index) for piece in block for d in _deltas(piece)]
        out.append(event("contentBlockStop", contentBlockIndex=index))
    return b"".join(out)


def stream(script: Script) -> bytes:
    """The usage is in the last frame, after the reason to stop."""
    out = [_pieces(script)]
    out += [event("messageStop", stopReason=STOP_REASONS[e.reason]) for e in script if isinstance(e, Finish)]
    tokens = [e for e in script if isinstance(e, Tokens)]
    out += [event("metadata", usage=usage_fields(t), metrics={"latencyMs": 712}) for t in tokens[-1:]]
    return b"".join(out)


def _whole_block(pieces: list[Any]) -> dict[str, Any]:
    first = pieces[0]
    if isinstance(first, Text):
        return {"text": "".join(p.text for p in pieces)}
    if isinstance(first, ToolCall):
        arguments = json.loads("".join(p.arguments for p in pieces) or "{}")
        return {"toolUse": {"toolUseId": first.id, "name": first.name, "input": arguments}}
    signature = "".join(p.signature for p in pieces)
    text = {"text": "".join(p.text for p in pieces)}
    return {"reasoningContent": {"reasoningText": text | ({"signature": signature} if signature else {})}}


def answer(script: Script) -> bytes:
    """A whole answer."""
    found: dict[str, Any] = {
        "metrics": {"latencyMs": 712},
        "output": {"message": {"content": [_whole_block(b) for b in _blocks(script)], "role": "assistant"}},
    }
    for piece in script:
        if isinstance(piece, Finish):
            found["stopReason"] = STOP_REASONS[piece.reason]
        if isinstance(piece, Tokens):
            found["usage"] = usage_fields(piece)
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


def error(status: int, code: str, message: str) -> VendorError:
    """The body has the message only; what kind of error it is stands in a header."""
    headers = {
        "Content-Type": "application/json",
        "x-amzn-ErrorType": f"{code}:http://internal.amazon.com/coral/com.amazon.bedrock/",
        "x-amzn-RequestId": REQUEST_ID,
    }
    return VendorError(status, json.dumps({"message": message}).encode(), headers)


FAKE = FakeVendor(
    wire="bedrock",
    deploy=(
        "--pretrained_model_type",
        "saas/aws_bedrock",
        "--infer_params",
        "saas.base_url={url}",
        "saas.region_name=us-east-1",
        "saas.aws_access_key=AKIDEXAMPLE",
        "saas.aws_secret_key=wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
        f"saas.model={MODEL}",
    ),
    supports=frozenset(("text", "reasoning", "tools", "usage", "cached", "vision", "json_schema")),
    stream=stream,
    answer=answer,
    error=error,
    error_in_stream=lambda script, code, message: _pieces(script) + exception(code, message),
    stream_type="application/vnd.amazon.eventstream",
    paths=("/model/",),
)
