"""Errors inside answers of status 200."""

from __future__ import annotations

import json
from typing import Any

import pytest

from byzerllm.wire.in_band import in_band_status
from byzerllm.wire.openai import OpenAIWire

WIRE = OpenAIWire()
CHOICES = [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]


@pytest.mark.parametrize(
    ("answer", "status", "message", "code"),
    [
        ({"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, 429, "rate limit", 1002),
        ({"choices": None, "base_resp": {"status_code": 2049, "status_msg": "invalid key"}}, 401, "invalid key", 2049),
        ({"base_resp": {"status_code": 1000, "status_msg": "unknown"}}, 502, "unknown", 1000),
        ({"code": 10013, "message": "not allowed", "sid": "cha1"}, 400, "not allowed", 10013),
        ({"code": "11202", "message": "slow down"}, 429, "slow down", "11202"),
        ({"error": {"message": "no provider", "code": 429}}, 429, "no provider", 429),
        ({"error": {"message": "no", "code": "weird"}}, 502, "no", "weird"),
        ({"error": "invalid_client", "error_description": "who?"}, 502, "who?", "invalid_client"),
        ({"error_code": 18, "error_msg": "qps"}, 502, "qps", 18),
    ],
)  # fmt: skip
def test_an_error_has_the_status_it_should_have_had(answer: Any, status: int, message: str, code: Any) -> None:
    for body in (json.dumps(answer).encode(), b"data:" + json.dumps(answer).encode() + b"\n\n"):
        error = WIRE.failure(body)
        assert error is not None
        assert (error.status, error.message, error.vendor_code) == (status, message, code)


def test_the_vendors_id_of_the_request_is_kept() -> None:
    error = WIRE.failure(b'{"code":10013,"message":"no","sid":"cha1"}')
    assert error is not None
    assert error.request_id == "cha1"


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": CHOICES},
        {"choices": CHOICES, "base_resp": {"status_code": 0, "status_msg": ""}},
        {"code": 0, "message": "Success", "choices": CHOICES},
        {"code": 0, "message": "Success"},
        {"code": 200, "message": "ok"},
        {"error": None, "choices": CHOICES},
        {"error": None, "status": "completed"},
        {"code": 7, "choices": CHOICES},
        {"error": {"code": 1}, "data": [{"embedding": [0.1]}]},
        {"choices": [{"message": {"content": '{"error": {"code": 429}}'}}]},
        ["error"],
        7,
    ],
)
def test_a_plain_answer_is_none(answer: Any) -> None:
    assert in_band_status(json.dumps(answer).encode()) is None
    assert WIRE.failure(b"data: " + json.dumps(answer).encode() + b"\n\n") is None


@pytest.mark.parametrize(
    "answer",
    [b"", b'{"error": ', b'"error": 1}', b'data: {"error":{"message":"cut"', b": comment\n\n", b"\x00\xff" * 9],
)
def test_what_is_no_whole_json_is_none(answer: bytes) -> None:
    assert WIRE.failure(answer) is None


def test_an_error_at_either_end_of_a_long_answer_is_found() -> None:
    long = "x" * 10_000
    for answer in (
        {"base_resp": {"status_code": 1002}, "choices": None, "text": long},
        {"text": long, "base_resp": {"status_code": 1002}},
    ):
        assert in_band_status(json.dumps(answer).encode()) == 429
