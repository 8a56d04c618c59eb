"""What follows from a failed attempt, pure: another attempt or the end, and whether the worker leaves the rotation."""

from __future__ import annotations

import random

from byzerllm.errors import (
    ByzerError,
    InvalidInput,
    UpstreamBroken,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)

RETRY_STATUSES = frozenset((408, 409, 429))
LONGEST_WAIT = 5.0  # seconds; a vendor that asks for more gets its answer passed on instead
BREAKER_FAILURES = 5  # in a row
BREAKER_FIRST = 1.0  # seconds out of rotation
BREAKER_LONGEST = 10.0
KEY_STATUSES = frozenset((401, 402, 403, 429))
REQUEST_STATUSES = frozenset((400, 413, 415, 422))  # a 404 is rather of a model or an address that is gone
RATE_LIMIT_REST = 5.0  # seconds that a key rests after a 429 that does not say how long
REFUSED_REST = 60.0  # seconds that a key rests which the vendor refuses, or whose quota is used up
LONGEST_REST = 300.0

# Codes and types of a 429 that waiting does not end, of OpenAI, Moonshot and Zhipu, and of a 400 of DashScope's.
_QUOTA = frozenset(("insufficient_quota", "exceeded_current_quota_error", "1113", "Arrearage"))


def outcome_of(error: ByzerError) -> str:
    """What a request that ends with the error counts as: the error's code, or, where the upstream finds fault with the
    request itself, that of a request which is refused here."""
    if isinstance(error, UpstreamError) and error.status in REQUEST_STATUSES and not _is_quota(error):
        return InvalidInput.code
    return error.code


def is_transient(error: UpstreamError) -> bool:
    """Whether another attempt may succeed: it never reached the vendor, or the vendor said so."""
    if error.was_answered:
        return False
    if isinstance(error, UpstreamUnreachable | UpstreamBroken):
        return True
    if isinstance(error, UpstreamTimeout):
        return error.details.get("timeout") in ("connect", "first_byte")
    return error.status in RETRY_STATUSES or error.status >= 500


def retry_delay(
    error: UpstreamError, attempt: int, max_retries: int, *, elsewhere: bool, watched: bool = False
) -> float | None:
    """Seconds until the next attempt, or None when there is none.

    ``attempt`` counts from 0; ``elsewhere`` says that another endpoint is there to take it, which needs no waiting.
    A vendor that asks to wait longer than ``LONGEST_WAIT``, or that says the quota is used up, is believed. What it
    refuses to one key, another may get. A ``watched`` engine that fails at a request would fail at it again: it may
    be on its last legs, so that one other worker is asked, and that is all.
    """
    if attempt >= max_retries:
        return None
    if watched and error.status >= 500 and _is_answer(error):
        return 0.0 if elsewhere and attempt == 0 and is_transient(error) else None
    if elsewhere and key_rest(error):
        return 0.0
    if not is_transient(error) or _is_quota(error):
        return None
    if isinstance(error, UpstreamTimeout) and not elsewhere:
        return None  # the caller has waited long enough for this one
    if elsewhere:
        return 0.0
    asked = error.retry_after
    if asked is not None:
        return asked if asked <= LONGEST_WAIT else None
    return min(0.25 * 2.0**attempt, LONGEST_WAIT) * random.uniform(0.75, 1.25)


def is_worker_failure(error: UpstreamError, *, watched: bool = False) -> bool:
    """Whether the error counts against the worker. What a vendor answers with a 4xx is the caller's affair, and what
    became of an answer that came is not the connection's. Nor does a 5xx count against a ``watched`` engine: its
    process and its probes say whether it is well, and one client's odd requests must not take it from the others."""
    if not _is_answer(error):
        return True
    return error.status >= 500 and not error.was_answered and not watched


def _is_answer(error: UpstreamError) -> bool:
    """Whether the upstream itself said it, over a connection that held."""
    return not isinstance(error, UpstreamUnreachable | UpstreamBroken | UpstreamTimeout)


def key_rest(error: UpstreamError) -> float:
    """Seconds for which the key that met the error is better left alone; 0 when it is not about the key."""
    if error.status not in KEY_STATUSES and not _is_quota(error):
        return 0.0
    if error.retry_after:
        return min(error.retry_after, LONGEST_REST)
    return RATE_LIMIT_REST if error.status == 429 and not _is_quota(error) else REFUSED_REST


def _is_quota(error: UpstreamError) -> bool:
    return error.vendor_code in _QUOTA or error.vendor_type in _QUOTA


def breaker_pause(failures: int) -> float:
    """Seconds out of rotation after that many failures in a row; 0 while they are still few."""
    if failures < BREAKER_FAILURES:
        return 0.0
    return float(min(BREAKER_FIRST * 2.0 ** min(failures - BREAKER_FAILURES, 10), BREAKER_LONGEST))
