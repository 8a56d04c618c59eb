"""Balancing rules, pure: each one gives a worker with a free slot a key, and the smallest key is chosen.

A new rule is one class here and one line in ``POLICIES``. A key must stay true while its worker waits in the heap;
a rule whose key changes with the load is told of each change through ``Free.offer``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from byzerllm.routing.worker import Worker

Key = tuple[int, ...]


class Policy(Protocol):
    """One balancing rule of one instance. ``follows_load``: its key changes whenever a slot is taken or given back."""

    follows_load: bool

    def key(self, worker: Worker) -> Key:
        """The worker's place in the order; the smallest is chosen."""
        ...

    def chosen(self, worker: Worker) -> None:
        """Told of each choice."""
        ...


class LeastRecentlyUsed:
    """The worker least recently *assigned*; those never assigned first, in their order."""

    follows_load = False

    def key(self, worker: Worker) -> Key:
        return (worker.assigned, worker.index)

    def chosen(self, worker: Worker) -> None:
        pass


class LeastBusy:
    """The worker with the fewest running requests; among equals the least recently assigned."""

    follows_load = True

    def key(self, worker: Worker) -> Key:
        return (worker.active, worker.assigned, worker.index)

    def chosen(self, worker: Worker) -> None:
        pass


class RoundRobin:
    """By turns in the order of the workers; one without a free slot loses its turn."""

    follows_load = False

    def __init__(self) -> None:
        self._lap = 0
        self._position = -1

    def key(self, worker: Worker) -> Key:
        lap = self._lap if worker.index > self._position else self._lap + 1
        return (lap, worker.index)

    def chosen(self, worker: Worker) -> None:
        if worker.index <= self._position:
            self._lap += 1
        self._position = worker.index


POLICIES: dict[str, Callable[[], Policy]] = {
    "lru": LeastRecentlyUsed,
    "round_robin": RoundRobin,
    "least_busy": LeastBusy,
}


class Free:
    """The workers that have a free slot, ordered by a policy. Offering and taking cost O(log workers).

    A worker is offered again whenever its key may have changed; older entries of it are skipped when they surface.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heap: list[tuple[Key, int, Worker]] = []
        self._ticket = 0
        self._live = 0

    def offer(self, worker: Worker) -> None:
        """The worker has a free slot; replaces what was offered of it before."""
        if not worker.ticket:
            self._live += 1
        self._ticket += 1
        worker.ticket = self._ticket
        heapq.heappush(self._heap, (self._policy.key(worker), self._ticket, worker))
        if len(self._heap) > 64 and len(self._heap) > 4 * self._live:
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].ticket]
            heapq.heapify(self._heap)

    def withdraw(self, worker: Worker) -> None:
        """The worker is not to be chosen any more."""
        if worker.ticket:
            worker.ticket = 0
            self._live -= 1

    def take(self, avoid: Worker | None = None) -> Worker | None:
        """The policy's choice, withdrawn from the order; ``avoid`` only if there is no other. None: nobody is free."""
        first = self._pop()
        worker = self._pop() or first if first is not None and first is avoid else first
        if worker is None or first is None:
            return None
        self._policy.chosen(worker)
        if worker is not first:
            self.offer(first)  # after the choice: by turns, it has lost its own
        return worker

    def _pop(self) -> Worker | None:
        heap = self._heap
        while heap:
            _, ticket, worker = heapq.heappop(heap)
            if worker.ticket == ticket:
                worker.ticket = 0
                self._live -= 1
                return worker
        return None
