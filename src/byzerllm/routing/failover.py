"""What follows from a failed attempt, pure: another attempt or the end, and whether the worker leaves the rotation."""

from __future__ import annotations

import random

from byzerllm.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable

RETRY_STATUSES = frozenset((408, 409, 429))
LONGEST_WAIT = 5.0  # seconds; a vendor that asks for more gets its answer passed on instead
BREAKER_FAILURES = 5  # in a row
BREAKER_FIRST = 1.0  # seconds out of rotation
BREAKER_LONGEST = 10.0


def is_transient(error: UpstreamError) -> bool:
    """Whether another attempt may succeed: it never reached the vendor, or the vendor said so."""
    if isinstance(error, UpstreamUnreachable | UpstreamBroken):
        return True
    if isinstance(error, UpstreamTimeout):
        return error.details.get("timeout") in ("connect", "first_byte")
    return error.status in RETRY_STATUSES or error.status >= 500


def retry_delay(error: UpstreamError, attempt: int, max_retries: int, *, elsewhere: bool) -> float | None:
    """Seconds until the next attempt, or None when there is none.

    ``attempt`` counts from 0; ``elsewhere`` says that another endpoint is there to take it, which needs no waiting.
    A vendor that asks to wait longer than ``LONGEST_WAIT``, or that says the quota is used up, is believed.
    """
    if attempt >= max_retries or not is_transient(error):
        return None
    if error.vendor_code == "insufficient_quota":
        return None
    if isinstance(error, UpstreamTimeout) and not elsewhere:
        return None  # the caller has waited long enough for this one
    if elsewhere:
        return 0.0
    asked = error.retry_after
    if asked is not None:
        return asked if asked <= LONGEST_WAIT else None
    return min(0.25 * 2.0**attempt, LONGEST_WAIT) * random.uniform(0.75, 1.25)


def is_worker_failure(error: UpstreamError) -> bool:
    """Whether the error counts against the worker. What a vendor answers with a 4xx is the caller's affair."""
    if isinstance(error, UpstreamUnreachable | UpstreamBroken | UpstreamTimeout):
        return True
    return error.status >= 500


def breaker_pause(failures: int) -> float:
    """Seconds out of rotation after that many failures in a row; 0 while they are still few."""
    if failures < BREAKER_FAILURES:
        return 0.0
    return float(min(BREAKER_FIRST * 2.0 ** min(failures - BREAKER_FAILURES, 10), BREAKER_LONGEST))
