"""Work in one thread beside the event loop, batch by batch, so that it can be given up between two of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from byzerllm.engines.host import cuda
from byzerllm.engines.host.loading import fail
from byzerllm.engines.host.sounds import joined
from byzerllm.errors import Overloaded

T = TypeVar("T")

BATCH = 32


def _on_device(work: Callable[..., T], *args: Any) -> T:
    """The call, in which a GPU may fail. torch is not imported here, but by what works with it."""
    try:
        return work(*args)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise Overloaded("The engine ran out of GPU memory.", hint="Send less at a time.") from None
        if type(error).__name__ == "AcceleratorError":  # no call of this process will succeed any more
            fail(str(cuda.cause(error)))
        raise


class OneThread:
    """Runs a model's calls one after the other. Several requests take turns, a batch each."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "model")

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """One call. If the caller is cancelled, a call that has not begun does not happen."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, _on_device, work, *args)

    async def run_batches(self, work: Callable[[Sequence[Any]], list[T]], items: Sequence[Any]) -> list[T]:
        """``work`` on all the items; between two batches others get their turn, and a cancelled caller ends it."""
        results: list[T] = []
        for start in range(0, len(items), BATCH):
            results += await self.run(work, items[start : start + BATCH])
        return results

    async def run_joined(self, parts: Iterator[Any]) -> Any:
        """The arrays that ``parts`` makes, joined; between two of them others get their turn, and a cancelled caller
        ends it."""
        made: list[Any] = []
        while (part := await self.run(next, parts, None)) is not None:
            made.append(part)
        return await self.run(joined, made)


class _Cancelled(Exception):
    """Nobody waits for the result any more."""


class StoppableThread(OneThread):
    """The same for models of torch that cannot be stopped in another way: a call whose caller is cancelled ends before
    the next part of a model."""

    def __init__(self, *models: Any) -> None:
        super().__init__()
        self._stop = threading.Event()  # that of the call under way
        for model in models:
            for module in model.modules():
                module.register_forward_pre_hook(self._check)

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        stop = threading.Event()

        def begin() -> T:
            self._stop = stop
            return work(*args)

        try:
            return await super().run(begin)
        finally:
            stop.set()

    def _check(self, _module: Any, _inputs: Any) -> None:
        if self._stop.is_set():
            raise _Cancelled
