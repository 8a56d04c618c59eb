"""Errors inside answers of status 200, as vendors send them that are compatible with OpenAI in all else, and what the
codes of MiniMax and Spark mean in whatever format of theirs.

Facts: the vendors' lists of codes. A code that stands in none of them counts as the vendor's own failure.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from byzerllm.wire.base import BAD_JSON

_MINIMAX = {
    1001: 504,
    1002: 429,
    1004: 401,
    1008: 402,
    1026: 400,  # the prompt is not allowed
    1027: 400,  # the answer would not be allowed
    1039: 429,
    2013: 400,
    2049: 401,
    2056: 429,
}
_SPARK = {
    **dict.fromkeys((10000, 10001, 10002, 10003, 10004, 10005, 10163, 10907), 400),
    **dict.fromkeys((10013, 10014, 10019, 10021), 400),  # prompt or answer are not allowed
    **dict.fromkeys((10006, 10007, 11201, 11202, 11203), 429),
    **dict.fromkeys((10008, 10110), 503),
    **dict.fromkeys((10015, 10016, 11200), 403),
    10404: 404,  # the domain is not served at this path
}
_STATUSES = _MINIMAX | _SPARK  # no code means two things

_SUSPECT = re.compile(rb'"(?:error|error_code|base_resp|code)"\s*:')
_EDGE = 2048  # bytes at either end of an answer in which an error would stand


class _BaseResp(msgspec.Struct):
    status_code: int = 0


class _Reply(msgspec.Struct):
    choices: Any = None
    data: Any = None
    error: Any = None
    base_resp: _BaseResp | None = None
    error_code: int | str | None = None
    code: int | str | None = None


_REPLY = msgspec.json.Decoder(_Reply)


def in_band_status(answer: bytes) -> int | None:
    """The HTTP status that the answer, or the first event of a stream, should have had; None where it is no error."""
    if not (_SUSPECT.search(answer[:_EDGE]) or _SUSPECT.search(answer[-_EDGE:])):
        return None
    try:
        reply = _REPLY.decode(answer)
    except BAD_JSON:
        return None
    if reply.base_resp is not None and reply.base_resp.status_code:
        return status_of(reply.base_resp.status_code)
    if reply.choices or reply.data:
        return None
    if reply.error:
        return status_of(reply.error.get("code") if isinstance(reply.error, dict) else None)
    code = reply.error_code or reply.code
    return status_of(code) if code and str(code) not in ("0", "200") else None


def status_of(code: Any) -> int:
    """The HTTP status that a code of MiniMax, of Spark or of HTTP itself stands for; 502 for any other."""
    number = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdigit()) else 0
    return number if 400 <= number < 600 else _STATUSES.get(number, 502)
