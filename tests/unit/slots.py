"""What the routing tests stand on: a worker in one call, and an event loop whose clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

from byzerllm.errors import UpstreamBroken
from byzerllm.relay.target import Target
from byzerllm.routing.failover import BREAKER_FAILURES
from byzerllm.routing.instance import Instance, Lease
from byzerllm.routing.worker import PassThrough, Worker
from byzerllm.spec import Timeouts
from byzerllm.wire import WIRES
from byzerllm.wire.base import Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everything waits and no timer will ever end it: a wake-up was lost")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Never sleeps: where all wait, its clock jumps to the next timer. What nobody handled fails the run."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self.unhandled: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.unhandled.append(context))

    def time(self) -> float:
        return self._jumping.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """``main`` in a virtual loop of its own."""
    loop = VirtualLoop()
    try:
        result = loop.run_until_complete(main)
    finally:
        loop.close()
    assert not loop.unhandled
    return result


def upstream(*, watched: bool = False) -> PassThrough:
    return PassThrough(
        wire=WIRES["openai"],
        target=Target(False, "127.0.0.1", 1),
        model="m",
        timeouts=Timeouts(),
        max_retries=2,
        heads={Task.CHAT: b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: "},
        watched=watched,
    )


def worker(index: int, capacity: int = 1, now: float = 0.0) -> Worker:
    return Worker(index, f"w{index}", capacity, upstream(), now)


def instance(
    loop: asyncio.AbstractEventLoop,
    *capacities: int,
    load_balance: str = "lru",
    max_queue: int = 10,
    queue_timeout: float = 5.0,
) -> Instance:
    """An instance named ``m`` with one worker for each capacity."""
    made = Instance(
        "m", Task.CHAT, load_balance=load_balance, max_queue=max_queue, queue_timeout=queue_timeout, loop=loop
    )
    for index, capacity in enumerate(capacities):
        made.add(worker(index, capacity))
    return made


def make(*capacities: int, load_balance: str = "lru", max_queue: int = 10, queue_timeout: float = 5.0) -> Instance:
    """``instance`` in the running loop."""
    loop = asyncio.get_running_loop()
    return instance(loop, *capacities, load_balance=load_balance, max_queue=max_queue, queue_timeout=queue_timeout)


def take(made: Instance, avoid: Worker | None = None) -> Lease:
    """A slot that is free now."""
    lease = made.lease_nowait(avoid)
    assert lease is not None
    return lease


async def ticks() -> None:
    """Let everything run that can run now."""
    for _ in range(5):
        await asyncio.sleep(0)


def queue(made: Instance, count: int, avoid: Worker | None = None) -> list[asyncio.Task[Lease]]:
    """Requests that wait, once ``ticks`` have passed."""
    return [asyncio.ensure_future(made.lease(avoid)) for _ in range(count)]


def story(body: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """The coroutine function as a test in a virtual loop."""

    def test() -> None:
        async def main() -> None:
            await body()

        run(main())

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


def fail(made: Instance, target: Worker, times: int = BREAKER_FAILURES) -> None:
    """So many failures in a row, by default just enough for the breaker."""
    for _ in range(times):
        made.failed(target, UpstreamBroken("it broke off"))
