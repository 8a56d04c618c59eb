"""One engine worker: a process and the steps of its life, each one at the edge and none of them a decision."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from byzerllm.control.ending import failure
from byzerllm.control.state import Phase, WorkerView
from byzerllm.control.upstreams import engine_upstream
from byzerllm.engines.base import Engine, EngineOptions, Launch
from byzerllm.errors import ByzerError, DeploymentFailed, UpstreamError
from byzerllm.relay.pool import Pool
from byzerllm.relay.target import parse_target, request_head
from byzerllm.routing.worker import Upstream, Worker
from byzerllm.runtime.base import EngineProcess, Need, Runtime
from byzerllm.runtime.worker_log import START_LINE
from byzerllm.spec import Timeouts
from byzerllm.wire.openai import parse_error

_READY_FIRST, _READY_LONGEST = 0.02, 0.5  # seconds between two tries of the readiness request
_WATCH = 0.5  # seconds between two looks at the process while a try waits for its answer
_ANSWER_LIMIT = 64 * 1024
_FIGURES = re.compile(r"\d+")
_FOLLOWED_LINES = 100  # of what a worker has said before we begin to listen
_NOTE = "byzerllm: note: "  # begins what a host's log has for whoever deploys
_START_LINES = 2000  # at most, of a start


@dataclass(frozen=True)
class EnginePlan:
    """What the workers of one generation have in common."""

    engine: Engine
    options: EngineOptions
    timeouts: Timeouts
    model: str


class EngineWorker:
    """Actual state of one worker. ``slot`` is its routing record once it was ready for the first time."""

    def __init__(self, worker_id: str, index: int, generation: int, plan: EnginePlan) -> None:
        self.id = worker_id
        self.index = index
        self.generation = generation
        self.plan = plan
        self.phase = Phase.STARTING
        self.process: EngineProcess | None = None
        self.slot: Worker | None = None
        self.failures = 0  # ends in a row
        self.restarts = 0
        self.retry_at = 0.0
        self.ready_at = 0.0
        self.error = ""
        self.waiting = ""  # why it has no place yet
        self.doing = ""  # while it starts: what its engine says that it does
        self.missed_probes = 0
        self.seen_progress = -1
        self.probe_at = 0.0

    def view(self) -> WorkerView:
        return WorkerView(self.id, self.index, self.generation, self.phase, self.retry_at, self.error, self.waiting)

    def upstream(self) -> Upstream:
        assert self.process is not None
        return engine_upstream(self.process, self.plan.model, self.plan.timeouts, self.plan.options)


async def launch(worker: EngineWorker, runtime: Runtime, need: Need) -> Launch:
    """Start the worker's process once there is a place for it; ``worker.process`` is set when this returns."""
    token = secrets.token_urlsafe(24)
    launched: list[Launch] = []

    def command(host: str, port: int) -> Launch:
        launched.append(worker.plan.engine.command(worker.plan.options, host, port, token))
        return launched[-1]

    def waiting(why: str) -> None:
        worker.waiting = why

    try:
        worker.process = await runtime.start(worker.id, need, command, token=token, waiting=waiting)
    finally:
        worker.waiting = ""
    return launched[-1]


async def wait_ready(
    worker: EngineWorker, start: Launch, runtime: Runtime, pool: Pool, tell: Callable[[str], None]
) -> None:
    """Return once the worker's process answered one real request; ``tell`` is told what it does until then.

    Raises:
        DeploymentFailed: the process ended, refused the request, or took too long; with its last log lines.
    """
    listening = asyncio.ensure_future(_listen(worker, runtime, tell))
    try:
        await _until_it_answers(worker, start, runtime, pool)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        worker.doing = ""


async def _listen(worker: EngineWorker, runtime: Runtime, tell: Callable[[str], None]) -> None:
    """Follow the worker's log, and tell of each thing that its engine says that it does."""
    rest = b""
    with suppress(ByzerError):  # no log to be had: then there is nothing to tell
        async for part in runtime.logs(worker.id, tail=_FOLLOWED_LINES, follow=True):
            text = (rest + part).rpartition(START_LINE)[2]  # not of the start before
            lines = text.replace(b"\r", b"\n").split(b"\n")  # a progress bar begins its line anew
            rest = lines[-1][-_ANSWER_LIMIT:]
            phases = [worker.plan.engine.phase(line.decode("utf-8", "replace")) for line in lines]
            for doing in newest(filter(None, phases)):
                if doing != worker.doing:
                    worker.doing = doing
                    tell(doing)


async def notes(worker: EngineWorker, runtime: Runtime) -> list[str]:
    """What the host of a worker that has become ready said to whoever deploys it."""
    log = b""
    with suppress(ByzerError):  # no log to be had
        log = b"".join([part async for part in runtime.logs(worker.id, tail=_START_LINES, follow=False)])
    lines = log.rpartition(START_LINE)[2].decode("utf-8", "replace").splitlines()
    return [line.removeprefix(_NOTE) for line in lines if line.startswith(_NOTE)]


def newest(phases: Iterable[str]) -> list[str]:
    """Of phases that come at once, and of which one differs from the next by its figures only, the last."""
    return [list(alike)[-1] for _, alike in groupby(phases, key=_FIGURES.split)]


async def _until_it_answers(worker: EngineWorker, start: Launch, runtime: Runtime, pool: Pool) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + start.ready_timeout
    pause = _READY_FIRST
    while (left := deadline - loop.time()) > 0:
        if await _while_it_runs(worker, runtime, _answers(worker, start, pool, left)):
            return
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _READY_LONGEST)
    doing = f", it was {worker.doing}" if worker.doing else ""
    raise DeploymentFailed(f"Worker {worker.index} was not ready within {start.ready_timeout:g} s{doing}.")


async def _while_it_runs(worker: EngineWorker, runtime: Runtime, trying: Coroutine[Any, Any, bool]) -> bool:
    """What ``trying`` returns. The end of the worker's process ends the wait too: a child that it leaves behind may
    keep the connection open."""
    task = asyncio.ensure_future(trying)
    try:
        while not task.done():
            ended = ended_error(worker, runtime)
            if ended is not None:
                raise ended
            await asyncio.wait((task,), timeout=_WATCH)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _answers(worker: EngineWorker, start: Launch, pool: Pool, limit: float) -> bool:
    """One try of the readiness request, of ``limit`` seconds at most; false while the engine does not listen or still
    loads."""
    process = worker.process
    assert process is not None
    target, _ = parse_target(process.base_url)
    lines = f"Host: {target.authority}\r\nAuthorization: Bearer {process.token}\r\nContent-Type: application/json\r\n"
    head = request_head("POST", target, start.ready_path, lines.encode())
    data = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(start.ready_body), start.ready_body)
    timeouts = Timeouts(connect=min(5, limit), first_byte=limit, idle=limit, total=limit)
    try:
        connection = await pool.exchange(target, data, timeouts)
        try:
            body = await connection.read_all(_ANSWER_LIMIT)
            status = connection.status
        finally:
            pool.give_back(connection)
    except UpstreamError:
        return False
    if status == 200:
        return True
    if status == 503:  # it listens and loads
        return False
    refused = parse_error(status, {}, body)
    raise DeploymentFailed(f"Worker {worker.index} refused its first request with {status}: {refused.message}")


def ended_error(worker: EngineWorker, runtime: Runtime) -> DeploymentFailed | None:
    """Why the worker's process is gone, or None while it runs."""
    assert worker.process is not None
    ended = runtime.poll(worker.process)
    if ended is None:
        return None
    if ended.lost:
        return DeploymentFailed(f"Worker {worker.index} was lost: {ended.lost}.")
    return failure(f"Worker {worker.index}", worker.plan.engine, ended)


async def probe(worker: EngineWorker, pool: Pool, timeout: float) -> bool:
    """Whether the worker's process answers HTTP at all (any status)."""
    process = worker.process
    assert process is not None
    target, _ = parse_target(process.base_url)
    lines = f"Host: {target.authority}\r\nAuthorization: Bearer {process.token}\r\n\r\n"
    data = request_head("GET", target, "/health", lines.encode())
    try:
        connection = await pool.exchange(target, data, Timeouts(timeout, timeout, timeout, timeout))
        try:
            await connection.read_all(_ANSWER_LIMIT)
        finally:
            pool.give_back(connection)
    except UpstreamError:
        return False
    return True
