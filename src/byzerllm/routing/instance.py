"""One instance's slots and its queue: who gets which worker, and when.

Invariants: a lease is released exactly once, in ``Lease.release``; a worker never runs more than its capacity; the
queue is first come, first served; nobody waits while a worker that may be given has a free slot.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from copy import copy
from types import TracebackType

from byzerllm.errors import Overloaded, UpstreamError
from byzerllm.routing.failover import breaker_pause, is_worker_failure, key_rest
from byzerllm.routing.policy import POLICIES, Free, Policy
from byzerllm.routing.stats import Stats
from byzerllm.routing.worker import Upstream, Worker
from byzerllm.wire.base import Task


class Lease:
    """One slot of one worker, as a context manager."""

    __slots__ = ("_instance", "worker")

    def __init__(self, instance: Instance, worker: Worker) -> None:
        self._instance: Instance | None = instance
        self.worker = worker

    def release(self) -> None:
        """Give the slot back; further calls do nothing."""
        instance, self._instance = self._instance, None
        if instance is not None:
            instance._release(self.worker)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _nothing() -> None:
    """Nobody wants to know."""


class _Waiter:
    __slots__ = ("avoid", "future")

    def __init__(self, future: asyncio.Future[Lease], avoid: Worker | None) -> None:
        self.future = future
        self.avoid = avoid


class Instance:
    """The routing side of a deployment. All methods belong to the event loop's thread."""

    def __init__(
        self,
        name: str,
        task: Task,
        *,
        load_balance: str,
        max_queue: int,
        queue_timeout: float,
        loop: asyncio.AbstractEventLoop,
        created_at: float = 0.0,
    ) -> None:
        self.name = name
        self.created_at = created_at  # Unix time
        self.running: set[asyncio.Task[None]] = set()  # whoever answers a request of this instance
        self.task = task
        self.load_balance = load_balance
        self.max_queue = max_queue
        self.queue_timeout = queue_timeout
        self.workers: list[Worker] = []
        self.stats = Stats()
        self.draining = False
        self.on_failure: Callable[[], None] = _nothing  # told of each failed attempt: a sign that an engine is gone
        self._unavailable: Overloaded | None = None
        self._loop = loop
        self._policy: Policy = POLICIES[load_balance]()
        self._free = Free(self._policy)
        self._waiters: deque[_Waiter] = deque()
        self._sequence = 0
        self._last_error: UpstreamError | None = None
        self._on_drained: dict[Worker, Callable[[], None]] = {}

    # -- leases --------------------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        return len(self._waiters)

    @property
    def active(self) -> int:
        """Running requests, those of retired workers included."""
        return sum(w.active for w in self.workers) + sum(w.active for w in self._on_drained)

    def lease_nowait(self, avoid: Worker | None = None) -> Lease | None:
        """A slot at once, or None when the request has to wait (others wait already, or nobody is free)."""
        if self._waiters:
            return None
        worker = self._free.take(avoid)
        return None if worker is None else self._assign(worker)

    async def lease(self, avoid: Worker | None = None) -> Lease:
        """A slot, after waiting in the queue if need be. Cancelling the wait leaves the queue.

        Raises:
            Overloaded: the queue is full, the wait took longer than ``queue_timeout``, the breaker has taken every
                worker out of rotation, or the instance is unavailable.
        """
        lease = self.lease_nowait(avoid)
        if lease is not None:
            return lease
        self._refuse_if_hopeless()
        waiter = _Waiter(self._loop.create_future(), avoid)
        self._waiters.append(waiter)
        timer = self._loop.call_later(self.queue_timeout, self._expire, waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                waiter.future.result().release()  # it was handed a slot in the very moment it gave up
            raise
        finally:
            timer.cancel()
            if not waiter.future.done() or waiter.future.cancelled():
                self._discard(waiter)

    def retry_after(self) -> float:
        """Seconds after which a slot can be expected, from the recent requests' mean time; at least 1."""
        slots = sum(w.capacity for w in self.workers if w.in_rotation) or 1
        return float(max(1, min(60, round(self.stats.latency.mean() * (len(self._waiters) + 1) / slots))))

    def _refuse_if_hopeless(self) -> None:
        error = self._unavailable or self._breaker_error()
        if error is not None:
            raise copy(error)  # one that is raised again and again would keep every caller's frames
        if len(self._waiters) >= self.max_queue:
            raise Overloaded(
                f"{self.name}: all slots are busy and {len(self._waiters)} requests wait already (--max_queue "
                f"{self.max_queue}).",
                retry_after=self.retry_after(),
            )

    def _breaker_error(self) -> Overloaded | None:
        """Set when failures have taken every worker out of rotation: waiting would only hide what is wrong."""
        if not self.workers or any(w.in_rotation or not w.up for w in self.workers):
            return None
        wait = max(0.0, min(w.open_until for w in self.workers) - self._loop.time())
        return Overloaded(
            f"{self.name}: every worker failed repeatedly and is tried again in {wait:.1f} s. Last error: "
            f"{self._last_error.message if self._last_error else 'unknown'}",
            retry_after=max(1.0, wait),
        )

    def _assign(self, worker: Worker) -> Lease:
        self._sequence += 1
        worker.active += 1
        worker.requests += 1
        worker.assigned = self._sequence
        worker.assigned_at = self._loop.time()
        if worker.free:
            self._free.offer(worker)
        return Lease(self, worker)

    def _release(self, worker: Worker) -> None:
        worker.active -= 1
        if worker.retired:
            self._check_drained(worker)
            return
        self._offer(worker)

    def _offer(self, worker: Worker) -> None:
        if worker.free and (not worker.ticket or self._policy.follows_load):
            self._free.offer(worker)
        if self._waiters:
            self._serve_waiters()

    def _serve_waiters(self) -> None:
        while self._waiters:
            waiter = self._waiters[0]
            if waiter.future.done():
                self._waiters.popleft()
                continue
            worker = self._free.take(waiter.avoid)
            if worker is None:
                return
            self._waiters.popleft()
            waiter.future.set_result(self._assign(worker))

    def _expire(self, waiter: _Waiter) -> None:
        if not waiter.future.done():
            self._discard(waiter)
            waiter.future.set_exception(
                Overloaded(
                    f"{self.name}: no slot came free within {self.queue_timeout:g} s (--queue_timeout).",
                    retry_after=self.retry_after(),
                )
            )

    def _discard(self, waiter: _Waiter) -> None:
        try:
            self._waiters.remove(waiter)
        except ValueError:
            return

    # -- what became of an attempt -------------------------------------------------------------------------------

    def succeeded(self, worker: Worker) -> None:
        """The worker answered; whatever it said, it is well."""
        if worker.failures or worker.probing:
            worker.failures = 0
            worker.probing = False
            self._offer(worker)

    def failed(self, worker: Worker, error: UpstreamError) -> None:
        """The attempt failed; too many failures in a row take the worker out of rotation for a while, and a key that
        the vendor refuses takes its workers out."""
        if not is_worker_failure(error, watched=worker.upstream.watched):
            self.succeeded(worker)
            rest = key_rest(error)
            if rest:
                self.cool(worker.upstream, rest)
            return
        self._last_error = error
        self.on_failure()
        worker.failures += 1
        pause = breaker_pause(worker.failures)
        if not pause or worker.open_until:
            return
        worker.probing = False
        self._pause(worker, pause, probing=True)
        hopeless = self._breaker_error()
        if hopeless is not None:
            self._fail_waiters(hopeless)

    def cool(self, upstream: Upstream, seconds: float) -> None:
        """Take the workers of one key out of rotation for so long. Not those of the last key of that vendor which is
        still in rotation: then the vendor's own answer is what the caller should see."""
        others = (w for w in self.workers if w.upstream is not upstream and w.upstream.target == upstream.target)
        if not any(w.in_rotation for w in others):
            return
        for worker in self.workers:
            if worker.upstream is upstream and not worker.open_until:
                self._pause(worker, seconds, probing=False)

    def forget_attempt(self, worker: Worker) -> None:
        """The attempt goes on elsewhere: a user's request is counted once, where it was answered."""
        worker.requests -= 1
        self.stats.retries += 1

    def _pause(self, worker: Worker, seconds: float, *, probing: bool) -> None:
        worker.open_until = self._loop.time() + seconds
        self._free.withdraw(worker)
        self._loop.call_later(seconds, self._resume, worker, worker.open_until, probing)

    def _resume(self, worker: Worker, until: float, probing: bool) -> None:
        if worker.open_until != until:  # it was restarted meanwhile
            return
        worker.open_until = 0.0
        worker.probing = worker.probing or probing
        self._offer(worker)

    def _fail_waiters(self, error: Overloaded) -> None:
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.future.done():
                waiter.future.set_exception(copy(error))

    # -- for control ---------------------------------------------------------------------------------------------

    def add(self, worker: Worker) -> None:
        """The worker takes requests from now on."""
        self.workers.append(worker)
        self._offer(worker)

    def set_up(self, worker: Worker, up: bool) -> None:
        """Take a worker out without forgetting it (its engine restarts), or put it back, its failures forgotten."""
        if worker.up == up:
            return
        worker.up = up
        if up:
            worker.failures, worker.probing, worker.open_until = 0, False, 0.0
            self._offer(worker)
        else:
            self._free.withdraw(worker)

    def retire(self, worker: Worker, on_drained: Callable[[], None]) -> None:
        """No new lease for the worker; ``on_drained`` is called once its running requests are over, maybe at once."""
        worker.retired = True
        self._free.withdraw(worker)
        self.workers.remove(worker)
        self._on_drained[worker] = on_drained
        self._check_drained(worker)

    def rebalance(self, load_balance: str) -> None:
        """Change the rule; running and waiting requests are not disturbed."""
        self.load_balance = load_balance
        self._policy = POLICIES[load_balance]()
        for worker in self.workers:
            worker.ticket = 0
        self._free = Free(self._policy)
        for worker in self.workers:
            self._offer(worker)

    def set_unavailable(self, reason: str | None) -> None:
        """With a reason, nobody waits for a slot that will not come: requests are refused with it. None ends that."""
        self._unavailable = Overloaded(f"{self.name} cannot answer: {reason}", retry_after=5) if reason else None
        if self._unavailable is not None:
            self._fail_waiters(self._unavailable)

    def cut(self, reason: str) -> None:
        """The instance goes now: whoever waits or is being answered is told why."""
        self.set_unavailable(reason)
        for task in tuple(self.running):
            task.cancel()

    def refusal(self) -> Overloaded | None:
        """What a request is told while the instance is unavailable."""
        return copy(self._unavailable)

    def _check_drained(self, worker: Worker) -> None:
        if worker.active == 0 and worker in self._on_drained:
            self._on_drained.pop(worker)()
