"""MiniMax's ``chatcompletion_pro``: senders instead of roles, errors in ``base_resp``, one count for all tokens."""

from __future__ import annotations

import json
from typing import Any

from tests.vendors.base import FakeVendor, Script, VendorError

from byzerllm.wire.events import Finish, Text, Tokens

MODEL = "abab6.5s-chat"
REQUEST_ID = "02f2b1e3a9d64c0c8b1d"


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _message(text: str) -> dict[str, str]:
    return {"sender_type": "BOT", "sender_name": "Assistant", "text": text}


def _last(script: Script, text: str) -> dict[str, Any]:
    reason = next((e.reason for e in script if isinstance(e, Finish)), "stop")
    total = sum(e.prompt + e.completion for e in script if isinstance(e, Tokens))
    return {
        "created": 1700000000,
        "model": MODEL,
        "reply": text,
        "choices": [{"finish_reason": reason, "messages": [_message(text)]}],
        "usage": {"total_tokens": total},
        "input_sensitive": False,
        "output_sensitive": False,
        "id": REQUEST_ID,
        "base_resp": {"status_code": 0, "status_msg": ""},
    }


def _pieces(script: Script) -> list[bytes]:
    texts = [e.text for e in script if isinstance(e, Text)]
    head = {"created": 1700000000, "model": MODEL, "reply": ""}
    return [
        b"data: %b\n\n" % _compact({**head, "choices": [{"messages": [_message(t)]}], "output_sensitive": False})
        for t in texts
    ]


def stream(script: Script) -> bytes:
    text = "".join(e.text for e in script if isinstance(e, Text))
    return b"".join(_pieces(script)) + b"data: %b\n\n" % _compact(_last(script, text))


def answer(script: Script) -> bytes:
    return _compact(_last(script, "".join(e.text for e in script if isinstance(e, Text))))


def _outcome(code: str, message: str) -> dict[str, Any]:
    return {"status_code": int(code) if code.isdigit() else code, "status_msg": message}


def error(status: int, code: str, message: str) -> VendorError:
    return VendorError(status, _compact({"id": REQUEST_ID, "base_resp": _outcome(code, message)}))


def error_in_answer(code: str, message: str) -> bytes:
    """Also what a request for a stream gets: no stream."""
    head = {"created": 0, "model": "", "reply": "", "choices": None, "usage": None}
    return _compact({**head, "id": REQUEST_ID, "base_resp": _outcome(code, message)})


def error_in_stream(script: Script, code: str, message: str) -> bytes:
    return b"".join(_pieces(script)) + b"data: %b\n\n" % error_in_answer(code, message)


FAKE = FakeVendor(
    wire="minimax_pro",
    deploy=(
        "--pretrained_model_type",
        "saas/minimax",
        "--infer_params",
        "saas.api_url={url}/v1/text/chatcompletion_pro",
        "saas.api_key=sk-test",
        "saas.group_id=1747179187841536150",
        f"saas.model={MODEL}",
    ),
    supports=frozenset(("text", "length")),
    stream=stream,
    answer=answer,
    error=error,
    error_in_answer=error_in_answer,
    error_in_stream=error_in_stream,
    paths=("/v1/text/chatcompletion_pro?GroupId=1747179187841536150",),
)
