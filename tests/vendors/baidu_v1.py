"""Baidu's ``wenxinworkshop``: increments in ``result``, ``is_end``, and errors as plain JSON with status 200."""

from __future__ import annotations

import json
from typing import Any

from tests.vendors.base import FakeVendor, Script, VendorError

from byzerllm.wire.events import Finish, Text, Tokens, ToolCall

MODEL = "ERNIE-4.0-8K"
PATH = "/rpc/2.0/ai_custom/v1/wenxinworkshop"
ANSWER_ID = "as-bcmt5ct4iy"

_REASONS = {"stop": "normal", "tool_calls": "function_call"}


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _usage(script: Script) -> dict[str, int]:
    tokens = next((e for e in script if isinstance(e, Tokens)), Tokens(0, 0))
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
    }


def _ending(script: Script) -> dict[str, Any]:
    reason = next((e.reason for e in script if isinstance(e, Finish)), "stop")
    return {
        "is_truncated": reason == "length",
        "need_clear_history": False,
        "finish_reason": _REASONS.get(reason, reason),
        "usage": _usage(script),
    }


def _call(script: Script) -> dict[str, Any]:
    """The one call that an answer can hold."""
    calls = [e for e in script if isinstance(e, ToolCall)]
    if not calls:
        return {}
    arguments = "".join(c.arguments for c in calls)
    return {"function_call": {"name": calls[0].name, "arguments": arguments, "thoughts": ""}}


def _chunk(number: int, **fields: Any) -> bytes:
    head = {"id": ANSWER_ID, "object": "chat.completion", "created": 1700000000, "sentence_id": number}
    return b"data: %b\n\n" % _compact({**head, **fields})


def _pieces(script: Script) -> list[bytes]:
    texts = [e.text for e in script if isinstance(e, Text)]
    more = {"is_end": False, "is_truncated": False, "need_clear_history": False}
    usage = {**_usage(script), "completion_tokens": 0}
    return [_chunk(number, **more, result=text, usage=usage) for number, text in enumerate(texts)]


def stream(script: Script) -> bytes:
    pieces = _pieces(script)
    return b"".join([*pieces, _chunk(len(pieces), is_end=True, result="", **_call(script), **_ending(script))])


def answer(script: Script) -> bytes:
    text = "".join(e.text for e in script if isinstance(e, Text))
    head = {"id": ANSWER_ID, "object": "chat.completion", "created": 1700000000, "result": text}
    return _compact({**head, **_call(script), **_ending(script)})


def error(status: int, code: str, message: str) -> VendorError:
    return VendorError(status, error_in_answer(code, message))


def error_in_answer(code: str, message: str) -> bytes:
    """Also what a request for a stream gets: no stream."""
    return _compact({"error_code": int(code) if code.isdigit() else code, "error_msg": message, "id": ANSWER_ID})


def error_in_stream(script: Script, code: str, message: str) -> bytes:
    return b"".join(_pieces(script)) + b"data: %b\n\n" % error_in_answer(code, message)


FAKE = FakeVendor(
    wire="baidu_v1",
    deploy=(
        "--pretrained_model_type",
        "saas/qianfan",
        "--infer_params",
        f"saas.base_url={{url}}{PATH}",
        "saas.access_token=24.6f1a",
        f"saas.model={MODEL}",
    ),
    supports=frozenset(("text", "length", "usage")),  # not tools: an answer holds one call at most
    stream=stream,
    answer=answer,
    error=error,
    error_in_answer=error_in_answer,
    error_in_stream=error_in_stream,
    paths=(f"{PATH}/chat/completions_pro?access_token=24.6f1a",),
)
