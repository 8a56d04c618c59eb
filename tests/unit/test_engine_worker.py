"""How long a worker is waited for, in a loop whose clock jumps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest
from tests.unit.slots import story

from byzerllm.control.engine_worker import EnginePlan, EngineWorker, newest, wait_ready
from byzerllm.engines import engine
from byzerllm.engines.base import EngineOptions, Launch
from byzerllm.errors import DeploymentFailed, UpstreamTimeout
from byzerllm.runtime.base import EngineProcess, Exit
from byzerllm.spec import Timeouts
from byzerllm.wire.base import Task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from byzerllm.relay.pool import Pool
    from byzerllm.relay.target import Target
    from byzerllm.runtime.base import Runtime

LAUNCH = Launch((), {}, "/v1/chat/completions", b"{}")


class Silent:
    """Takes every connection, and never answers."""

    def __init__(self) -> None:
        self.tries = 0
        self.open = 0

    async def exchange(self, target: Target, data: bytes, timeouts: Timeouts) -> None:
        self.tries += 1
        self.open += 1
        try:
            await asyncio.sleep(timeouts.first_byte)
        finally:
            self.open -= 1
        raise UpstreamTimeout("slow")


class Process:
    """Of a runtime, one process without a log; it ends after so many seconds."""

    def __init__(self, lives: float) -> None:
        self._lives = lives

    def poll(self, process: EngineProcess) -> Exit | None:
        ended = asyncio.get_running_loop().time() >= self._lives
        return Exit(1, "no memory") if ended else None

    async def logs(self, worker_id: str, *, tail: int, follow: bool) -> AsyncIterator[bytes]:
        lines: tuple[bytes, ...] = ()
        for line in lines:
            yield line


async def seconds_until_it_fails(pool: Silent, lives: float, words: str) -> float:
    plan = EnginePlan(engine("llama_cpp"), EngineOptions("/m", 1, (Task.CHAT,)), Timeouts(), "m")
    worker = EngineWorker("m.1.0", 0, 1, plan)
    worker.process = EngineProcess(worker_id="m.1.0", pid=1, started=0, host="127.0.0.1", port=1, token="t", log="")
    with pytest.raises(DeploymentFailed, match=words):
        await wait_ready(worker, LAUNCH, cast("Runtime", Process(lives)), cast("Pool", pool), lambda doing: None)
    return asyncio.get_running_loop().time()


@story
async def test_one_that_never_answers_has_its_time_once() -> None:
    pool = Silent()
    assert await seconds_until_it_fails(pool, 1e9, "not ready within 3600 s") == pytest.approx(3600, abs=1)
    assert pool.open == 0


@story
async def test_the_end_of_its_process_is_noticed_while_a_try_waits() -> None:
    pool = Silent()
    assert await seconds_until_it_fails(pool, 100, "ended with exit code 1") == pytest.approx(100, abs=1)
    assert (pool.tries, pool.open) == (1, 0)


def test_of_figures_that_come_at_once_the_newest_is_told() -> None:
    said = ["loading", "loading 10%", "loading 20%", "loading 100%", "loading 0/2 parts", "loading 2/2 parts", "ready"]
    assert newest(said) == ["loading", "loading 100%", "loading 2/2 parts", "ready"]
    assert newest([]) == []
