"""Slots and the queue of one instance, in a loop whose clock jumps."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.slots import VirtualLoop, make, queue, run, story, take, ticks

from byzerllm.errors import Overloaded


@story
async def test_a_lease_is_a_context_manager_and_is_given_back_once() -> None:
    made = make(1)
    with await made.lease() as lease:
        assert (lease.worker.index, made.active, made.workers[0].free) == (0, 1, 0)
    lease.release()
    assert (made.active, made.workers[0].free, made.workers[0].requests) == (0, 1, 1)


@story
async def test_the_slot_comes_back_after_an_exception() -> None:
    made = make(1)
    with pytest.raises(KeyError), await made.lease():
        raise KeyError
    assert made.active == 0


@story
async def test_the_queue_is_first_come_first_served() -> None:
    made = make(1)
    first = take(made)
    waiting = queue(made, 3)
    await ticks()
    assert made.queued == 3
    assert made.lease_nowait() is None  # those who wait come first
    for number, task in enumerate(waiting):
        first.release()
        await ticks()
        assert [t.done() for t in waiting] == [n <= number for n in range(3)]
        first = task.result()
    assert made.queued == 0


@story
async def test_nobody_overtakes_the_queue_when_a_slot_comes_free() -> None:
    made = make(1)
    first = take(made)
    (waiting,) = queue(made, 1)
    await ticks()
    first.release()
    assert made.lease_nowait() is None  # it belongs to the one who waits, before that one even runs
    assert (await waiting).worker.active == 1


@story
async def test_one_who_gives_up_leaves_the_queue() -> None:
    made = make(1)
    first = take(made)
    gone, stays = queue(made, 2)
    await ticks()
    gone.cancel()
    await ticks()
    assert gone.cancelled()
    assert made.queued == 1
    first.release()
    await stays


@story
async def test_one_who_gives_up_in_the_tick_of_a_release_does_not_get_the_slot() -> None:
    made = make(1)
    first = take(made)
    gone, stays = queue(made, 2)
    await ticks()
    gone.cancel()
    first.release()  # the queue still has the cancelled one
    await ticks()
    assert gone.cancelled()
    assert stays.result().worker.active == 1


@story
async def test_one_who_gives_up_right_after_being_handed_a_slot_gives_it_back() -> None:
    made = make(1)
    first = take(made)
    gone, stays = queue(made, 2)
    await ticks()
    first.release()
    gone.cancel()
    await ticks()
    assert gone.cancelled()
    assert (made.active, stays.done()) == (1, True)
    stays.result().release()
    assert (made.active, made.queued) == (0, 0)


@story
async def test_one_who_gives_up_right_after_being_refused_is_cancelled() -> None:
    made = make(1)
    take(made)
    (gone,) = queue(made, 1)
    await ticks()
    made.set_unavailable("it was removed")
    gone.cancel()
    await ticks()
    assert gone.cancelled()


@story
async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    made = make(2, max_queue=2)
    take(made)
    take(made)
    made.stats.latency.add(8.0)
    waiting = queue(made, 2)
    await ticks()
    with pytest.raises(Overloaded, match=r"2 requests wait already \(--max_queue 2\)") as refused:
        await made.lease()
    assert refused.value.retry_after == 12.0  # 8 s for each of 3, two at a time
    for task in waiting:
        task.cancel()


@story
async def test_without_a_queue_nobody_waits() -> None:
    made = make(1, max_queue=0)
    take(made)
    with pytest.raises(Overloaded, match="0 requests wait"):
        await made.lease()


@story
async def test_the_time_to_come_back_is_between_a_second_and_a_minute() -> None:
    made = make()
    assert made.retry_after() == 1.0
    made.stats.latency.add(1000.0)
    assert made.retry_after() == 60.0


@story
async def test_the_wait_ends_after_the_queue_timeout() -> None:
    made = make(1, queue_timeout=2.5)
    lease = take(made)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(Overloaded, match=r"within 2\.5 s \(--queue_timeout\)"):
        await made.lease()
    assert loop.time() - started == pytest.approx(2.5)
    assert made.queued == 0
    lease.release()
    assert take(made).worker.index == 0


@story
async def test_a_slot_that_comes_free_while_the_timeout_runs_is_not_lost() -> None:
    made = make(1, queue_timeout=1.0)
    lease = take(made)
    first, second = queue(made, 2)
    await ticks()
    asyncio.get_running_loop().call_later(1.0, lease.release)  # after both timeouts, in the same instant
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert all(isinstance(r, Overloaded) for r in results)
    await asyncio.sleep(0.1)
    assert made.active == 0
    assert take(made).worker.index == 0


@story
async def test_a_slot_that_comes_free_in_the_instant_of_the_timeout_is_had() -> None:
    made = make(1, queue_timeout=1.0)
    lease = take(made)
    asyncio.get_running_loop().call_later(1.0, lease.release)  # before the timeout, in the same instant
    assert (await made.lease()).worker.active == 1


@story
async def test_a_failover_goes_to_another_worker_and_to_the_same_one_only_where_there_is_no_other() -> None:
    made = make(2, 2)
    first = take(made)
    other = take(made, avoid=first.worker)
    assert other.worker is not first.worker
    assert take(made, avoid=made.workers[0]).worker is made.workers[1]
    assert take(made, avoid=made.workers[1]).worker is made.workers[0]
    full = queue(made, 1, avoid=made.workers[0])
    await ticks()
    first.release()
    assert (await full[0]).worker is made.workers[0]


@story
async def test_each_of_many_waiters_gets_one_of_many_slots() -> None:
    made = make(4, 3)
    leases = [take(made) for _ in range(7)]
    waiting = queue(made, 7)
    await ticks()
    for lease in leases:
        lease.release()
    await ticks()
    assert sorted(t.result().worker.index for t in waiting) == [0, 0, 0, 0, 1, 1, 1]


def test_the_virtual_loop_finds_a_lost_wake_up() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(AssertionError, match="a wake-up was lost"):
        run(main())
    loop = VirtualLoop()
    assert loop.time() == 0.0
    loop.close()
