"""The balancing rules against a naive model of each, over random assignments, releases, arrivals and departures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.unit.slots import VirtualLoop, instance, worker

from byzerllm.routing.instance import Instance, Lease
from byzerllm.routing.policy import POLICIES, Free
from byzerllm.routing.worker import Worker

Choose = Callable[[list[Worker]], Worker]


class Machine(RuleBasedStateMachine):
    """An instance that nobody waits for, and beside it what the rule says in plain words, in O(n)."""

    load_balance = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.instance: Instance = instance(self.loop, load_balance=self.load_balance)
        self.leases: list[Lease] = []
        self.workers: list[Worker] = []
        self.turn = -1
        self.last: dict[Worker, int] = {}
        self.count = 0
        self.next_index = 0

    def teardown(self) -> None:
        """Nobody is lost: what the workers have free can be had, to the last slot."""
        free = sum(self.free_slots(w) for w in self.workers)
        for _ in range(free):
            assert self.instance.lease_nowait() is not None
        assert self.instance.lease_nowait() is None
        self.loop.close()

    def running(self, w: Worker) -> int:
        return sum(1 for lease in self.leases if lease.worker is w)

    def free_slots(self, w: Worker) -> int:
        return w.capacity - self.running(w) if w.up else 0

    def expected(self, avoid: Worker | None) -> Worker | None:
        free = [w for w in self.workers if self.free_slots(w)]
        free = [w for w in free if w is not avoid] or free
        if not free:
            return None
        if self.instance.load_balance == "lru":
            return min(free, key=lambda w: (self.last.get(w, 0), w.index))
        if self.instance.load_balance == "least_busy":
            return min(free, key=lambda w: (self.running(w), self.last.get(w, 0), w.index))
        return min(free, key=lambda w: (w.index <= self.turn, w.index))

    @rule(capacity=st.integers(1, 3))
    def add(self, capacity: int) -> None:
        new = worker(self.next_index, capacity)
        self.next_index += 1
        self.workers.append(new)
        self.instance.add(new)

    @rule(data=st.data(), failover=st.booleans())
    def assign(self, data: st.DataObject, failover: bool) -> None:
        avoid = data.draw(st.sampled_from(self.workers)) if failover and self.workers else None
        expected = self.expected(avoid)
        lease = self.instance.lease_nowait(avoid)
        assert (lease.worker if lease else None) is expected
        if lease is not None:
            self.count += 1
            self.last[lease.worker] = self.count
            self.turn = lease.worker.index
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.release()
        lease.release()  # does nothing

    @precondition(lambda self: len(self.workers) > 2)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        leaving = self.workers.pop(data.draw(st.integers(0, len(self.workers) - 1)))
        self.instance.retire(leaving, lambda: None)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), up=st.booleans())
    def set_up(self, data: st.DataObject, up: bool) -> None:
        self.instance.set_up(data.draw(st.sampled_from(self.workers)), up)

    @rule(load_balance=st.sampled_from(sorted(POLICIES)))
    def rebalance(self, load_balance: str) -> None:
        self.instance.rebalance(load_balance)
        self.turn = -1

    @invariant()
    def slots_agree(self) -> None:
        assert [w.free for w in self.workers] == [self.free_slots(w) for w in self.workers]
        assert self.instance.active == len(self.leases)


@pytest.mark.parametrize("load_balance", sorted(POLICIES))
def test_each_rule_chooses_what_its_naive_model_chooses(load_balance: str) -> None:
    machine: Any = type("One", (Machine,), {"load_balance": load_balance})
    run_state_machine_as_test(machine, settings=settings(max_examples=50, stateful_step_count=50, deadline=None))


def order(load_balance: str, capacities: list[int], count: int) -> list[int]:
    loop = VirtualLoop()
    made = instance(loop, *capacities, load_balance=load_balance)
    loop.close()
    leases = (made.lease_nowait() for _ in range(count))
    return [lease.worker.index for lease in leases if lease is not None]


def test_lru_takes_the_never_assigned_first_and_then_the_longest_unassigned() -> None:
    assert order("lru", [2, 2, 2], 7) == [0, 1, 2, 0, 1, 2]


def test_round_robin_passes_over_the_full_ones() -> None:
    assert order("round_robin", [1, 3, 2], 6) == [0, 1, 2, 1, 2, 1]


def test_least_busy_fills_evenly() -> None:
    assert order("least_busy", [3, 1, 2], 6) == [0, 1, 2, 0, 2, 0]


def test_round_robin_goes_on_after_a_failover_as_if_the_avoided_one_had_lost_its_turn() -> None:
    free = Free(POLICIES["round_robin"]())
    workers = [worker(index, 10) for index in range(3)]
    chosen = []
    for w in workers:
        free.offer(w)
    for avoid in (workers[0], None, None, None, None):
        taken = free.take(avoid)
        assert taken is not None
        free.offer(taken)
        chosen.append(taken.index)
    assert chosen == [1, 2, 0, 1, 2]


@pytest.mark.parametrize("load_balance", sorted(POLICIES))
def test_the_avoided_worker_is_chosen_where_there_is_no_other(load_balance: str) -> None:
    free = Free(POLICIES[load_balance]())
    only = worker(0)
    free.offer(only)
    assert free.take(only) is only
    assert free.take(only) is None


def offers(workers: list[Worker]) -> Iterator[Worker]:
    for number in range(20_000):
        yield workers[number * 7919 % len(workers)]


@pytest.mark.parametrize("count", [1, 10, 100])
def test_the_heap_is_bounded_by_the_workers_not_by_the_requests(count: int) -> None:
    free = Free(POLICIES["least_busy"]())
    workers = [worker(index, 1_000_000) for index in range(count)]
    for w in offers(workers):
        free.offer(w)
        assert len(free._heap) <= max(64, 4 * count)
    for w in workers:
        free.withdraw(w)
        free.withdraw(w)  # once more does nothing
    assert free.take() is None
    assert free._heap == []
