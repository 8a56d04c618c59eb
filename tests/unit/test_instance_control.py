"""What control does with an instance's workers while requests run and wait, in a loop whose clock jumps."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.slots import fail, make, queue, story, take, ticks, worker

from byzerllm.errors import Overloaded


@story
async def test_a_new_worker_serves_those_who_wait() -> None:
    made = make()
    waiting = queue(made, 2)
    await ticks()
    made.add(worker(0, 2))
    await ticks()
    assert [t.result().worker.index for t in waiting] == [0, 0]


@story
async def test_a_worker_that_is_down_gets_nothing_and_saying_it_twice_changes_nothing() -> None:
    made = make(2)
    only = made.workers[0]
    lease = take(made)
    made.set_up(only, False)
    made.set_up(only, False)
    assert made.lease_nowait() is None
    lease.release()
    assert made.lease_nowait() is None
    made.set_up(only, True)
    made.set_up(only, True)
    assert [take(made).worker for _ in range(2)] == [only, only]
    assert made.lease_nowait() is None


@story
async def test_a_retired_worker_finishes_its_requests_and_is_then_reported_once() -> None:
    made = make(2, 1)
    leaving = made.workers[0]
    leases = [take(made), take(made), take(made)]
    told: list[str] = []
    made.retire(leaving, lambda: told.append("drained"))
    assert (made.active, [w.index for w in made.workers]) == (3, [1])
    for lease in leases:
        assert not told
        lease.release()
    assert told == ["drained"]
    assert take(made).worker.index == 1
    assert made.lease_nowait() is None


@story
async def test_an_idle_worker_is_drained_at_once() -> None:
    made = make(1)
    told: list[str] = []
    made.retire(made.workers[0], lambda: told.append("drained"))
    assert told == ["drained"]
    assert made.lease_nowait() is None


@story
async def test_a_retired_worker_that_fails_is_tried_no_more() -> None:
    made = make(1)
    lease = take(made)
    leaving = lease.worker
    made.retire(leaving, lambda: None)
    fail(made, leaving)
    lease.release()
    await asyncio.sleep(2)
    assert made.lease_nowait() is None


@story
async def test_another_rule_disturbs_neither_who_runs_nor_who_waits() -> None:
    made = make(2, 1)
    leases = [take(made) for _ in range(3)]
    (waiting,) = queue(made, 1)
    await ticks()
    made.rebalance("round_robin")
    assert (made.load_balance, made.active, made.queued) == ("round_robin", 3, 1)
    leases[0].release()
    assert (await waiting).worker.index == 0
    assert made.lease_nowait() is None


@story
async def test_an_unavailable_instance_refuses_with_the_reason_until_it_is_back() -> None:
    made = make(1)
    lease = take(made)
    (waiting,) = queue(made, 1)
    await ticks()
    made.set_unavailable("OPENAI_KEY is not set")
    with pytest.raises(Overloaded, match="m cannot answer: OPENAI_KEY is not set"):
        await waiting
    frames = []
    for _ in range(3):
        with pytest.raises(Overloaded) as refused:
            await made.lease()
        frames.append(len(refused.traceback))
    assert len(set(frames)) == 1  # not more with each request
    made.set_unavailable(None)
    (waiting,) = queue(made, 1)
    await ticks()
    lease.release()
    assert (await waiting).worker.index == 0
