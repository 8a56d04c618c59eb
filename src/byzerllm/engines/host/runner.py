"""The one thread that a model runs in, and the way of its tokens to the coroutines that wait for them."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

from byzerllm.engines.host import cuda
from byzerllm.engines.host.backend import Job, Token
from byzerllm.engines.host.loading import fail

Outcome = Token | Exception | None  # None: the answer is whole

# Requests that come together are a little apart here. A model that began with the first of them would let the others
# wait for a whole step of its own.
GATHER_SECONDS = 0.001  # that an idle model waits for one more job, again after each that comes
GATHER_MOST = 16  # jobs that it waits for


class Ticket:
    """A job on its way. ``cancelled`` is set when nobody waits for it any more. ``constraint`` is what the answer must
    keep to (see ``grammar.py``), or None."""

    def __init__(self, job: Job, constraint: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.job = job
        self.constraint = constraint
        self.loop = loop
        self.cancelled = False
        self.outcomes: asyncio.Queue[Outcome] = asyncio.Queue()


class Runner:
    """Hands jobs to the model's thread, in their order, and its outcomes back.

    ``work`` is the thread: it calls ``take`` and ``publish`` for ever. If it ends by an unforeseen exception the
    process ends too, since no request can be answered any more; the log has the traceback, and the cause.
    """

    def __init__(self, work: Callable[[Runner], None]) -> None:
        self._work = work
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()

    def start(self) -> None:
        threading.Thread(target=self._run, name="model", daemon=True).start()

    def _run(self) -> None:
        try:
            self._work(self)
        except BaseException as error:  # noqa: BLE001  # whatever it is, the process is of no use without this thread
            traceback.print_exc(file=sys.stdout)
            fail(cuda.cause(error) or f"the model's thread ended: {type(error).__name__}: {error}")

    async def stream(self, job: Job, constraint: Any = None) -> AsyncGenerator[Token, None]:
        """The tokens of a job. Closing the generator cancels it."""
        ticket = Ticket(job, constraint, asyncio.get_running_loop())
        with self._changed:
            self._waiting.append(ticket)
            self._changed.notify()
        try:
            while (outcome := await ticket.outcomes.get()) is not None:
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
        finally:
            ticket.cancelled = True

    def take(self, most: int, *, wait: bool) -> list[Ticket]:
        """Up to ``most`` of the jobs that wait, the oldest first; with ``wait`` at least one."""
        with self._changed:
            while True:
                while self._waiting and self._waiting[0].cancelled:
                    self._waiting.popleft()
                if self._waiting or not wait:
                    break
                self._changed.wait()
                self._gather()
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def _gather(self) -> None:
        seen = 0
        while seen < len(self._waiting) < GATHER_MOST:
            seen = len(self._waiting)
            self._changed.wait(GATHER_SECONDS)

    def put_back(self, ticket: Ticket) -> None:
        """A job that could not be begun yet is the next one again."""
        with self._changed:
            self._waiting.appendleft(ticket)

    def publish(self, outcomes: Iterable[tuple[Ticket, Outcome]]) -> None:
        """Tell the waiting coroutines; one wake-up of the loop for all of a step's tokens."""
        batch = [(ticket, outcome) for ticket, outcome in outcomes if not ticket.cancelled]
        if batch:
            batch[0][0].loop.call_soon_threadsafe(_deliver, batch)


def _deliver(batch: list[tuple[Ticket, Outcome]]) -> None:
    for ticket, outcome in batch:
        ticket.outcomes.put_nowait(outcome)
