"""Work in one thread beside the event loop, batch by batch, so that it can be given up between two of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

BATCH = 32


class OneThread:
    """Runs a model's calls one after the other. Several requests take turns, a batch each."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "model")

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """One call. If the caller is cancelled, a call that has not begun does not happen."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    async def run_batches(self, work: Callable[[Sequence[Any]], list[T]], items: Sequence[Any]) -> list[T]:
        """``work`` on all the items; between two batches others get their turn, and a cancelled caller ends it."""
        results: list[T] = []
        for start in range(0, len(items), BATCH):
            results += await self.run(work, items[start : start + BATCH])
        return results
