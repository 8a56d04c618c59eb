"""Random sequences of all that can happen to an instance; after each step nothing is lost and nothing is overrun."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.slots import instance, run, worker

from byzerllm.errors import Overloaded, UpstreamBroken
from byzerllm.routing.instance import Instance, Lease
from byzerllm.routing.policy import POLICIES
from byzerllm.routing.worker import Worker

TIMEOUT = 3.0


class World:
    """An instance, the requests that wait for it, the leases that are out, and what was granted in which order."""

    def __init__(self, random: Random, load_balance: str) -> None:
        self.random = random
        self.instance: Instance = instance(
            asyncio.get_running_loop(), 1, 2, 3, load_balance=load_balance, max_queue=6, queue_timeout=TIMEOUT
        )
        self.leases: list[Lease] = []
        self.requests: dict[int, asyncio.Task[None]] = {}
        self.waiting: list[int] = []
        self.granted: list[int] = []
        self.count = 0
        self.retired: list[Worker] = []
        self.drained: list[Worker] = []

    async def request(self, number: int, avoid: Worker | None) -> None:
        self.waiting.append(number)
        try:
            lease = await self.instance.lease(avoid)
            self.granted.append(number)
            self.leases.append(lease)
        except Overloaded:
            pass
        finally:
            self.waiting.remove(number)

    def start_request(self) -> None:
        avoid = self.random.choice([None, *self.instance.workers])
        self.requests[self.count] = asyncio.ensure_future(self.request(self.count, avoid))
        self.count += 1

    def give_up(self) -> None:
        if self.requests:
            self.requests[self.random.choice(list(self.requests))].cancel()

    def release(self) -> None:
        if self.leases:
            self.leases.pop(self.random.randrange(len(self.leases))).release()

    def answer(self) -> None:
        if self.leases:
            self.instance.succeeded(self.random.choice(self.leases).worker)

    def fail(self) -> None:
        if self.leases:
            target = self.random.choice(self.leases).worker
            for _ in range(self.random.randint(1, 6)):
                self.instance.failed(target, UpstreamBroken("it broke off"))

    def add(self) -> None:
        self.instance.add(worker(100 + self.count, self.random.randint(1, 3)))
        self.count += 1

    def retire(self) -> None:
        if len(self.instance.workers) > 1:
            leaving = self.random.choice(self.instance.workers)
            self.retired.append(leaving)
            self.instance.retire(leaving, lambda: self.drained.append(leaving))

    def set_up(self) -> None:
        self.instance.set_up(self.random.choice(self.instance.workers), self.random.random() < 0.7)

    def rebalance(self) -> None:
        self.instance.rebalance(self.random.choice(sorted(POLICIES)))

    async def step(self) -> None:
        for _ in range(self.random.randint(1, 3)):  # several in the same tick
            often = [self.start_request] * 6 + [self.release] * 6 + [self.give_up] * 2 + [self.answer, self.fail]
            rare = [self.add, self.retire, self.set_up, self.rebalance]
            self.random.choice(often + rare)()
        await asyncio.sleep(self.random.choice([0, 0, 0, 0.3]))
        for _ in range(6):
            await asyncio.sleep(0)
        self.requests = {number: task for number, task in self.requests.items() if not task.done()}

    def check(self) -> None:
        workers = [*self.instance.workers, *self.retired]
        for w in workers:
            assert w.active == sum(1 for lease in self.leases if lease.worker is w)
            assert 0 <= w.active <= w.capacity
        assert self.instance.active == len(self.leases)
        assert self.instance.queued == len(self.waiting) == len(self.requests) <= 6
        if self.waiting:
            assert max(self.granted, default=-1) < min(self.waiting), "first come, first served"
            assert not any(w.free for w in self.instance.workers), "one waits while a slot is free"
        assert set(self.drained) == {w for w in self.retired if not w.active}
        assert len(self.drained) == len(set(self.drained))


@pytest.mark.parametrize("load_balance", sorted(POLICIES))
@given(st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_nothing_is_lost_and_nothing_is_overrun(load_balance: str, random: Random) -> None:
    async def main() -> None:
        world = World(random, load_balance)
        for _ in range(60):
            await world.step()
            world.check()
        for w in world.instance.workers:
            world.instance.set_up(w, True)
        while world.leases or world.requests:  # ends: whoever waits gets a slot or the queue's timeout
            for lease in world.leases:
                lease.release()
            world.leases.clear()
            await asyncio.gather(*world.requests.values(), return_exceptions=True)
            world.requests.clear()
        world.check()
        await asyncio.sleep(11)  # longer than any breaker
        slots = sum(1 if w.probing else w.capacity for w in world.instance.workers)
        assert len([lease for lease in iter(world.instance.lease_nowait, None) if lease]) == slots

    run(main())
