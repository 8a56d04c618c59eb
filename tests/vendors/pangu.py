"""Huawei's Pangu as a cloud deployment: numbers may be floats, nothing marks the end of a stream for sure.

``gateway_answer`` is what a private gateway says to the one-text form of a request.
"""

from __future__ import annotations

import json
from typing import Any

from tests.vendors.base import FakeVendor, Script, VendorError

from byzerllm.wire.events import Text, Tokens

ANSWER_ID = "cmpl-90d0ba3a"


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _tokens(script: Script) -> Tokens:
    return next((e for e in script if isinstance(e, Tokens)), Tokens(0, 0))


def _usage(script: Script) -> dict[str, float]:
    tokens = _tokens(script)
    return {
        "completion_tokens": float(tokens.completion),
        "prompt_tokens": float(tokens.prompt),
        "total_tokens": float(tokens.prompt + tokens.completion),
    }


def _event(value: Any, name: str = "") -> bytes:
    return b"%bdata:%b\n\n" % (f"event:{name}\n".encode() if name else b"", _compact(value))


def _pieces(script: Script) -> list[bytes]:
    head = {"id": ANSWER_ID, "created": 1700000000}
    texts = [e.text for e in script if isinstance(e, Text)]
    return [_event({**head, "choices": [{"index": 0, "message": {"content": t}}]}) for t in texts]


def stream(script: Script) -> bytes:
    last = {
        "id": ANSWER_ID,
        "created": 1700000000,
        "choices": [{"index": 0, "message": {"content": ""}}],
        "usage": _usage(script),
    }
    moderation = _event({"suggestion": "pass", "id": ANSWER_ID}, "moderation")
    return b"".join([*_pieces(script), moderation, _event(last), b"data:[DONE]\n\n"])


def answer(script: Script) -> bytes:
    text = "".join(e.text for e in script if isinstance(e, Text))
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    return _compact({"id": ANSWER_ID, "created": 1700000000, "choices": [choice], "usage": _usage(script)})


def gateway_answer(script: Script) -> bytes:
    text = "".join(e.text for e in script if isinstance(e, Text))
    tokens = _tokens(script)
    answers = [{"content": text, "tokens": tokens.completion}]
    return _compact({"answers": answers, "tokens": tokens.prompt + tokens.completion})


def error(status: int, code: str, message: str) -> VendorError:
    return VendorError(status, _compact({"error_code": code, "error_msg": message}))


def error_in_stream(script: Script, code: str, message: str) -> bytes:
    return b"".join([*_pieces(script), _event({"error_code": code, "error_msg": message})])


FAKE = FakeVendor(
    wire="pangu",
    deploy=(
        "--pretrained_model_type",
        "saas/pangu",
        "--infer_params",
        "saas.base_url={url}",
        "saas.project_id=p1",
        "saas.deployment_id=d1",
        "saas.app_code=code",
        "saas.model=pangu-nlp-71b",
    ),
    supports=frozenset(("text", "usage")),
    stream=stream,
    answer=answer,
    error=error,
    error_in_stream=error_in_stream,
    ends_by_itself=False,
    paths=("/v1/p1/deployments/d1/chat/completions",),
)
