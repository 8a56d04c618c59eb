"""iFlytek Spark's websocket: JSON frames with a status of 0, 1 and 2, usage in the last; see ``tests/spark.py`` for the
server. The bytes here are the frames, one a line."""

from __future__ import annotations

import json
from typing import Any

from tests.vendors.base import FakeVendor, Script, VendorError

from byzerllm.wire.events import Reasoning, Text, Tokens, ToolCall

SID = "cha000704fa@dx16ade44e4d87a1c802"


def _frame(status: int, **payload: Any) -> bytes:
    header = {"code": 0, "message": "Success", "sid": SID, "status": status}
    return json.dumps({"header": header, "payload": payload}, ensure_ascii=False, separators=(",", ":")).encode()


def _choices(number: int, status: int, **text: Any) -> dict[str, Any]:
    return {"status": status, "seq": number, "text": [{"content": "", "role": "assistant", "index": 0, **text}]}


def _pieces(script: Script) -> list[dict[str, Any]]:
    pieces: list[dict[str, Any]] = []
    for event in script:
        if isinstance(event, Text):
            pieces.append({"content": event.text})
        elif isinstance(event, Reasoning):
            pieces.append({"reasoning_content": event.text})
    calls = [e for e in script if isinstance(e, ToolCall)]
    if calls:  # the one that an answer can hold comes whole
        call = {"name": calls[0].name, "arguments": "".join(c.arguments for c in calls)}
        pieces.append({"content_type": "text", "function_call": call})
    return pieces


def _running(script: Script) -> list[bytes]:
    pieces = enumerate(_pieces(script))
    return [_frame(min(number, 1), choices=_choices(number, min(number, 1), **piece)) for number, piece in pieces]


def stream(script: Script) -> bytes:
    frames = _running(script)
    tokens = next((e for e in script if isinstance(e, Tokens)), Tokens(0, 0))
    usage = {
        "question_tokens": 4,
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
    }
    last = _frame(2, choices=_choices(len(frames), 2), usage={"text": usage})
    return b"\n".join([*frames, last]) + b"\n"


def error(status: int, code: str, message: str) -> VendorError:
    """A handshake that is refused; its body has no code."""
    return VendorError(status, json.dumps({"message": message}).encode())


def error_in_answer(code: str, message: str) -> bytes:
    header = {"code": int(code), "message": message, "sid": SID, "status": 2}
    return json.dumps({"header": header}, ensure_ascii=False).encode() + b"\n"


def error_in_stream(script: Script, code: str, message: str) -> bytes:
    return b"".join([b"%b\n" % frame for frame in _running(script)]) + error_in_answer(code, message)


FAKE = FakeVendor(
    wire="spark",
    deploy=(
        "--pretrained_model_type",
        "saas/sparkdesk",
        "--infer_params",
        "saas.gpt_url={url}/v3.5/chat",
        "saas.appid=a1",
        "saas.api_key=key",
        "saas.api_secret=secret",
        "saas.domain=generalv3.5",
    ),
    supports=frozenset(("text", "reasoning", "usage")),  # not tools: an answer holds one call at most
    stream=stream,
    answer=stream,
    error=error,
    error_in_answer=error_in_answer,
    error_in_stream=error_in_stream,
    stream_type="",  # a websocket
)
