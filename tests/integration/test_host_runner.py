"""How the host's model thread takes its jobs, with real threads."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from byzerllm.engines.host import runner as module
from byzerllm.engines.host.backend import Job, Prompt, Sampling
from byzerllm.engines.host.runner import Runner

if TYPE_CHECKING:
    from byzerllm.engines.host.runner import Ticket

JOB = Job(Prompt([1]), 5, frozenset(), Sampling())


def taken(jobs: int) -> int:
    """How many of the jobs, which come one by one, an idle model begins with together."""
    first: list[Ticket] = []
    model = threading.Thread(target=lambda: first.extend(runner.take(jobs, wait=True)), daemon=True)
    runner = Runner(lambda _: None)

    async def main() -> None:
        model.start()
        waiting = []
        for _ in range(jobs):
            await asyncio.sleep(0.05)
            waiting.append(asyncio.ensure_future(anext(runner.stream(JOB))))
        await asyncio.to_thread(model.join)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(main())
    return len(first)


def test_an_idle_model_begins_with_all_that_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER_SECONDS", 60.0)
    monkeypatch.setattr(module, "GATHER_MOST", 3)
    assert taken(3) == 3


def test_nobody_waits_for_those_who_do_not_come() -> None:
    assert taken(1) == 1
