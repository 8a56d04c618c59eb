"""What follows from a failed attempt."""

from __future__ import annotations

import pytest

from byzerllm.errors import ByzerError, Overloaded, UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from byzerllm.routing.failover import (
    BREAKER_FAILURES,
    LONGEST_REST,
    LONGEST_WAIT,
    RATE_LIMIT_REST,
    REFUSED_REST,
    breaker_pause,
    is_transient,
    is_worker_failure,
    key_rest,
    outcome_of,
    retry_delay,
)


def answered(status: int, retry_after: float | None = None, code: str | None = None) -> UpstreamError:
    return UpstreamError("no", status=status, retry_after=retry_after, vendor_code=code)


def timeout(which: str) -> UpstreamTimeout:
    return UpstreamTimeout("slow", details={"timeout": which})


@pytest.mark.parametrize(
    ("error", "transient", "workers_fault"),
    [
        (UpstreamUnreachable("no connection"), True, True),
        (UpstreamBroken("cut"), True, True),
        (timeout("connect"), True, True),
        (timeout("first_byte"), True, True),
        (timeout("idle"), False, True),
        (timeout("total"), False, True),
        (answered(400), False, False),
        (answered(401), False, False),
        (answered(404), False, False),
        (answered(408), True, False),
        (answered(409), True, False),
        (answered(429), True, False),
        (answered(499), False, False),
        (answered(500), True, True),
        (answered(529), True, True),
        (UpstreamError("spoiled", was_answered=True), False, False),
        (UpstreamBroken("came, and is none", was_answered=True), False, True),
    ],
)
def test_what_may_be_tried_again_and_whose_fault_it_is(
    error: UpstreamError, transient: bool, workers_fault: bool
) -> None:
    assert is_transient(error) is transient
    assert is_worker_failure(error) is workers_fault
    assert (retry_delay(error, 0, 2, elsewhere=True) == 0.0) is (transient or error.status == 401)


@pytest.mark.parametrize("status", [500, 501, 503])
def test_an_engine_of_ours_that_answers_5xx_is_asked_once_elsewhere_and_stays_in_rotation(status: int) -> None:
    error = answered(status)
    assert not is_worker_failure(error, watched=True)
    assert retry_delay(error, 0, 3, elsewhere=False, watched=True) is None
    assert retry_delay(error, 0, 3, elsewhere=True, watched=True) == 0.0
    assert retry_delay(error, 1, 3, elsewhere=True, watched=True) is None


@pytest.mark.parametrize("error", [UpstreamUnreachable("no connection"), UpstreamBroken("cut"), timeout("connect")])
def test_an_engine_of_ours_that_does_not_answer_is_out_like_any_other(error: UpstreamError) -> None:
    assert is_worker_failure(error, watched=True)
    assert retry_delay(error, 1, 3, elsewhere=True, watched=True) == 0.0


def test_the_last_attempt_is_the_last() -> None:
    assert retry_delay(answered(500), 1, 2, elsewhere=True) == 0.0
    assert retry_delay(answered(500), 2, 2, elsewhere=True) is None
    assert retry_delay(answered(500), 0, 0, elsewhere=True) is None


@pytest.mark.parametrize(
    "error",
    [
        answered(429, code="insufficient_quota"),
        answered(429, code="1113"),
        UpstreamError("no", status=429, vendor_type="exceeded_current_quota_error"),
        answered(400, code="Arrearage"),
    ],
)
def test_a_quota_that_is_used_up_does_not_come_back_by_waiting_but_another_key_has_its_own(
    error: UpstreamError,
) -> None:
    assert retry_delay(error, 0, 2, elsewhere=False) is None
    assert retry_delay(error, 0, 2, elsewhere=True) == 0.0
    assert key_rest(error) == REFUSED_REST


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_key_that_is_refused_is_not_tried_again_but_another_is(status: int) -> None:
    assert retry_delay(answered(status), 0, 2, elsewhere=False) is None
    assert retry_delay(answered(status), 0, 2, elsewhere=True) == 0.0
    assert retry_delay(answered(status), 2, 2, elsewhere=True) is None


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_what_is_wrong_with_a_request_is_neither_the_upstreams_fault_nor_tried_again(status: int) -> None:
    for watched in (False, True):
        error = answered(status)
        assert outcome_of(error) == "invalid_request"
        assert not is_worker_failure(error, watched=watched)
        assert retry_delay(error, 0, 3, elsewhere=True, watched=watched) is None
        assert key_rest(error) == 0


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        *((answered(status), "upstream_error") for status in (401, 402, 403, 404, 408, 409, 424, 429, 500, 503)),
        (answered(400, code="Arrearage"), "upstream_error"),
        (UpstreamBroken("cut"), "upstream_broken"),
        (timeout("idle"), "upstream_timeout"),
        (Overloaded("full"), "overloaded"),
    ],
)
def test_all_else_counts_as_what_the_error_is(error: ByzerError, outcome: str) -> None:
    assert outcome_of(error) == outcome


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (answered(429), RATE_LIMIT_REST),
        (answered(429, retry_after=0.5), 0.5),
        (answered(429, retry_after=7200), LONGEST_REST),
        (answered(401), REFUSED_REST),
        (answered(402), REFUSED_REST),
        (answered(403, retry_after=3), 3),
        (answered(404), 0),
        (answered(500, retry_after=3), 0),
        (UpstreamBroken("cut"), 0),
    ],
)
def test_how_long_a_key_rests(error: UpstreamError, seconds: float) -> None:
    assert key_rest(error) == seconds


@pytest.mark.parametrize("which", ["connect", "first_byte"])
def test_who_waited_for_a_timeout_does_not_wait_for_the_same_endpoint_again(which: str) -> None:
    assert retry_delay(timeout(which), 0, 2, elsewhere=False) is None
    assert retry_delay(timeout(which), 0, 2, elsewhere=True) == 0.0


@pytest.mark.parametrize(("asked", "delay"), [(0.0, 0.0), (3.0, 3.0), (LONGEST_WAIT, 5.0), (LONGEST_WAIT + 0.1, None)])
def test_the_vendor_is_believed(asked: float, delay: float | None) -> None:
    assert retry_delay(answered(429, retry_after=asked), 0, 2, elsewhere=False) == delay


@pytest.mark.parametrize(("attempt", "middle"), [(0, 0.25), (1, 0.5), (2, 1.0), (9, LONGEST_WAIT)])
def test_otherwise_the_wait_doubles_and_is_not_the_same_for_all(attempt: int, middle: float) -> None:
    delays = [retry_delay(answered(503), attempt, 10, elsewhere=False) for _ in range(100)]
    assert all(delay is not None and 0.75 * middle <= delay <= 1.25 * middle for delay in delays)
    assert len(set(delays)) > 1


def test_the_breaker_opens_for_longer_each_time_up_to_a_limit() -> None:
    assert [breaker_pause(n) for n in range(BREAKER_FAILURES)] == [0.0] * BREAKER_FAILURES
    assert [breaker_pause(BREAKER_FAILURES + n) for n in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert breaker_pause(10_000) == 10.0
