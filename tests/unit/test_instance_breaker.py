"""The breaker of one instance, in a loop whose clock jumps."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.slots import fail, make, queue, story, take, ticks, upstream

from byzerllm.errors import Overloaded, UpstreamError
from byzerllm.routing.failover import BREAKER_FAILURES


@story
async def test_failures_in_a_row_take_a_worker_out_and_one_request_tries_it_again() -> None:
    made = make(3, 3)
    broken, well = made.workers
    fail(made, broken, BREAKER_FAILURES - 1)
    assert broken.in_rotation
    fail(made, broken, 1)
    assert (broken.in_rotation, broken.free) == (False, 0)
    assert [take(made).worker for _ in range(3)] == [well] * 3
    assert made.lease_nowait() is None
    await asyncio.sleep(1.01)
    assert broken.free == 1
    probe = take(made)
    assert probe.worker is broken
    assert made.lease_nowait() is None  # one at a time
    made.succeeded(broken)
    assert broken.free == 2
    probe.release()
    assert [take(made).worker for _ in range(3)] == [broken] * 3


@story
async def test_an_answer_of_4xx_shows_that_the_worker_is_well() -> None:
    made = make(2)
    fail(made, made.workers[0], BREAKER_FAILURES - 1)
    made.failed(made.workers[0], UpstreamError("no such model", status=404))
    assert made.workers[0].failures == 0
    fail(made, made.workers[0], BREAKER_FAILURES - 1)
    assert made.workers[0].in_rotation


@story
async def test_what_an_engine_of_ours_answers_does_not_take_it_out() -> None:
    made = make(2)
    (only,) = made.workers
    only.upstream = upstream(watched=True)
    for _ in range(2 * BREAKER_FAILURES):
        made.failed(only, UpstreamError("no such tool", status=500))
    assert (only.in_rotation, only.failures) == (True, 0)
    fail(made, only)
    assert not only.in_rotation


@story
async def test_a_probe_that_fails_opens_for_longer_and_one_that_is_cancelled_lets_another_try() -> None:
    made = make(2, 2)
    broken = made.workers[0]
    fail(made, broken)
    fail(made, broken)  # others that were under way: no second timer
    first = broken.open_until
    await asyncio.sleep(1.01)
    take(made, avoid=made.workers[1]).release()  # its client went away: neither well nor broken
    assert (broken.probing, broken.free) == (True, 1)
    fail(made, broken, 1)
    assert broken.open_until > first + 2
    assert not broken.probing


@story
async def test_a_request_under_way_that_succeeds_while_the_breaker_is_open_does_not_leave_it_half_open() -> None:
    made = make(4)
    only = made.workers[0]
    lease = take(made)
    fail(made, only)
    made.succeeded(only)
    lease.release()
    assert only.free == 0  # out until the pause is over
    await asyncio.sleep(1.01)
    assert only.free == 1
    with take(made):
        made.succeeded(only)
        assert only.free == 3


@story
async def test_a_restarted_engine_has_all_its_slots_whatever_the_breaker_said_of_the_old_process() -> None:
    made = make(4)
    only = made.workers[0]
    fail(made, only)
    made.set_up(only, False)
    made.set_up(only, True)
    assert (only.in_rotation, only.free) == (True, 4)
    await asyncio.sleep(2)  # the old timer finds nothing to do
    assert (only.probing, only.free) == (False, 4)


@story
async def test_the_timer_of_an_earlier_opening_does_not_end_a_later_one() -> None:
    made = make(1)
    only = made.workers[0]
    fail(made, only)
    await asyncio.sleep(0.5)
    made.set_up(only, False)
    made.set_up(only, True)
    fail(made, only)
    await asyncio.sleep(0.75)
    assert not only.in_rotation
    await asyncio.sleep(0.5)
    assert only.in_rotation


@story
async def test_when_every_worker_is_out_those_who_wait_are_told_why_and_so_is_who_comes() -> None:
    made = make(1, 1)
    leases = [take(made), take(made)]
    waiting = queue(made, 2)
    waiting[0].add_done_callback(lambda _: None)
    await ticks()
    fail(made, made.workers[0])
    assert made.queued == 2
    waiting[1].cancel()
    fail(made, made.workers[1])
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], Overloaded)
    assert isinstance(results[1], asyncio.CancelledError)
    for lease in leases:
        lease.release()
    with pytest.raises(Overloaded, match=r"tried again in 1\.0 s\. Last error: it broke off") as refused:
        await made.lease()
    assert refused.value is not results[0]  # its own: a shared one would gather the frames of all
    assert refused.value.retry_after == 1.0
    await asyncio.sleep(1.5)
    assert take(made).worker.probing


@story
async def test_while_an_engine_restarts_its_requests_wait() -> None:
    made = make(1, 1)
    fail(made, made.workers[0])
    made.set_up(made.workers[1], False)
    (waiting,) = queue(made, 1)
    await ticks()
    made.set_up(made.workers[1], True)
    assert (await waiting).worker is made.workers[1]


@story
async def test_an_attempt_that_goes_on_elsewhere_is_no_request_of_a_user() -> None:
    made = make(1, 1)
    with take(made) as lease:
        made.forget_attempt(lease.worker)
    with take(made):
        pass
    assert [w.requests for w in made.workers] == [0, 1]
    assert made.stats.retries == 1
