"""A private instance: engine processes that a loop keeps at what the spec says.

``reconcile`` decides, this shell acts: it starts, probes, drains and stops, one task a step, and looks again after
each step and twice a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from byzerllm.control.deployment import Notify, unheard
from byzerllm.control.drain import wait_until_drained
from byzerllm.control.engine_worker import EnginePlan, EngineWorker, ended_error, launch, notes, probe, wait_ready
from byzerllm.control.reconcile import Desired, Drain, reconcile
from byzerllm.control.state import STEADY_AFTER, Phase, State, instance_state, restart_pause
from byzerllm.control.store import SavedEngine, Store
from byzerllm.errors import ByzerError, DeploymentFailed, InternalError
from byzerllm.relay.pool import Pool
from byzerllm.routing.instance import Instance
from byzerllm.routing.worker import Worker
from byzerllm.runtime.base import EngineProcess, Need, Runtime
from byzerllm.spec import DeploymentSpec

log = logging.getLogger(__name__)

_TICK = 0.5  # seconds
_PROBES_TO_BE_HUNG = 3
_FAILURES_TO_REFUSE = 3  # starts in a row that failed, with no other worker ready: requests no longer wait for it


@dataclass(frozen=True)
class Surroundings:
    """What a private instance works with; all of it outlives the instance."""

    runtime: Runtime
    pool: Pool
    store: Store
    plan: Callable[[DeploymentSpec], EnginePlan]  # reads a model's small files: for a thread
    probe_interval: float
    stop_grace: float = 5.0


class PrivateDeployment:
    """Implements ``Deployment``."""

    def __init__(
        self, spec: DeploymentSpec, generation: int, created_at: float, plan: EnginePlan, around: Surroundings
    ) -> None:
        self.spec = spec
        self.generation = generation
        self.created_at = created_at
        self._around = around
        self._plan = plan
        self._workers: dict[str, EngineWorker] = {}
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._steps: dict[str, asyncio.Task[None]] = {}
        self._main: asyncio.Task[None] | None = None
        self._failure: ByzerError | None = None  # the first one since ``_settle`` began
        self._settling = False
        self._notify: Notify = unheard
        self._noted: set[str] = set()  # what was said since then; each worker would say the same
        self.instance = Instance(
            spec.name,
            self._plan.options.task,
            load_balance=spec.load_balance,
            max_queue=spec.max_queue,
            queue_timeout=spec.queue_timeout,
            loop=self._loop,
            created_at=created_at,
        )
        self.instance.on_failure = self._wake.set

    @classmethod
    async def build(
        cls, spec: DeploymentSpec, generation: int, created_at: float, around: Surroundings
    ) -> PrivateDeployment:
        """The instance, of which nothing runs yet.

        Raises:
            ByzerError: its engine cannot be told how to run it: a secret, or a file of the model, is gone.
        """
        plan = await asyncio.to_thread(around.plan, spec)
        return cls(spec, generation, created_at, plan, around)

    # -- Deployment ----------------------------------------------------------------------------------------------

    async def start(self, notify: Notify) -> None:
        self.run()
        await self._settle(notify)

    def run(self) -> None:
        """Begin to keep the workers at what the spec says, without waiting for anything."""
        if self._main is None:
            self._main = self._loop.create_task(self._keep(), name=f"keep {self.spec.name}")
        self._wake.set()

    async def change(self, spec: DeploymentSpec, generation: int, notify: Notify) -> None:
        before = (self.spec, self.generation, self._plan)
        plan = await asyncio.to_thread(self._around.plan, spec)
        self.run()
        self.spec, self.generation, self._plan = spec, generation, plan
        try:
            await self._settle(notify)
        except BaseException:
            self.spec, self.generation, self._plan = before
            self._wake.set()
            raise
        self.instance.task = plan.options.task
        self.instance.max_queue, self.instance.queue_timeout = spec.max_queue, spec.queue_timeout
        if self.instance.load_balance != spec.load_balance:
            self.instance.rebalance(spec.load_balance)

    async def drain(self, notify: Notify) -> None:
        self.instance.draining = True
        await wait_until_drained(self.instance, notify)

    async def stop(self) -> None:
        self.instance.draining = True
        tasks = [*self._steps.values(), *([self._main] if self._main else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.instance.cut("it was removed")
        await asyncio.gather(*(self._end(worker) for worker in list(self._workers.values())))

    async def detach(self) -> None:
        """Stop looking after the processes and let them run: the next server adopts them."""
        tasks = [*self._steps.values(), *([self._main] if self._main else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def state(self) -> tuple[State, str]:
        views = [w.view() for w in self._workers.values()]
        return instance_state(self.spec.num_workers, views, draining=self.instance.draining)

    def worker_details(self) -> list[dict[str, Any]]:
        return [
            {
                "id": w.id,
                "index": w.index,
                "phase": w.phase.value,
                "doing": w.doing,
                "pid": w.process.pid if w.process else None,
                "gpus": list(w.process.gpus) if w.process else [],
                "node": w.process.node if w.process else "",
                "restarts": w.restarts,
                "error": w.error,
                "waiting": w.waiting,
            }
            for w in sorted(self._workers.values(), key=lambda w: (w.generation, w.index))
        ]

    async def adopt(self, saved: SavedEngine) -> bool:
        """Take a process back that an earlier server started; false where it no longer runs or is not wanted."""
        if saved.generation != self.generation or saved.index >= self.spec.num_workers:
            return False
        if not await self._around.runtime.adopt(saved.process, Need.of(self.spec)):
            return False
        worker = EngineWorker(saved.process.worker_id, saved.index, saved.generation, self._plan)
        worker.process = saved.process
        self._workers[worker.id] = worker
        self._step(f"start {worker.id}", self._readopt_worker(worker, saved.process))
        return True

    # -- the loop ------------------------------------------------------------------------------------------------

    async def _settle(self, notify: Notify) -> None:
        """Wait until there is nothing left to do. The first failure meanwhile ends it."""
        self._failure, self._settling, self._notify = None, True, notify
        self._noted.clear()
        told = ""
        try:
            while not self._settled():
                if self._failure is not None:
                    raise self._failure
                waiting = next((w.waiting for w in self._workers.values() if w.waiting), "")
                if waiting not in ("", told):
                    told = waiting
                    notify(told)
                await asyncio.sleep(0.01)
        finally:
            self._settling, self._notify = False, unheard

    def _settled(self) -> bool:
        workers = list(self._workers.values())
        return len(workers) == self.spec.num_workers and all(
            w.phase is Phase.READY and w.generation == self.generation for w in workers
        )

    async def _keep(self) -> None:
        while True:
            self._observe()
            desired = Desired(self.generation, self.spec.num_workers, self._around.runtime.has_room(Need.of(self.spec)))
            for action in reconcile(desired, [w.view() for w in self._workers.values()], self._loop.time()):
                if isinstance(action, Drain):
                    self._drain_worker(self._workers[action.worker_id])
                else:
                    self._begin_start(action.index, action.worker_id)
            self._wake.clear()
            # Not by wait_for, which before Python 3.12 forgets that it was cancelled when it is woken at that moment.
            timer = self._loop.call_later(_TICK, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()

    def _observe(self) -> None:
        now = self._loop.time()
        for worker in self._workers.values():
            if worker.phase is not Phase.READY:
                continue
            ended = ended_error(worker, self._around.runtime)
            if ended is not None:
                self._went_down(worker, ended)
            elif now >= worker.probe_at and f"probe {worker.id}" not in self._steps:
                worker.probe_at = now + self._around.probe_interval
                self._step(f"probe {worker.id}", self._probe(worker))

    def _begin_start(self, index: int, worker_id: str | None) -> None:
        if worker_id is None:
            worker_id = f"{self.spec.name}.{self.generation}.{index}"
            self._workers[worker_id] = EngineWorker(worker_id, index, self.generation, self._plan)
        worker = self._workers[worker_id]
        worker.phase = Phase.STARTING
        self._step(f"start {worker_id}", self._start_worker(worker))

    def _drain_worker(self, worker: EngineWorker) -> None:
        starting = self._steps.get(f"start {worker.id}")
        if starting is not None:
            starting.cancel()
        worker.phase = Phase.DRAINING
        if worker.slot is None or worker.slot.retired:
            self._step(f"stop {worker.id}", self._end(worker))
        else:
            self.instance.retire(worker.slot, lambda: self._step(f"stop {worker.id}", self._end(worker)))

    def _step(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work, name=name)
        self._steps[name] = task
        task.add_done_callback(lambda done: self._step_over(name, done))

    def _step_over(self, name: str, task: asyncio.Task[None]) -> None:
        if self._steps.get(name) is task:
            del self._steps[name]
        self._wake.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("%s failed", name, exc_info=task.exception())
            worker = self._workers.get(name.removeprefix("start "))
            if worker is not None and worker.phase is Phase.STARTING:
                self._went_down(
                    worker, InternalError(f"Worker {worker.index} could not be started: {task.exception()}.")
                )

    # -- the steps -----------------------------------------------------------------------------------------------

    async def _start_worker(self, worker: EngineWorker) -> None:
        around = self._around
        if worker.process is not None:  # it ended by itself; its children may not have
            await self._kill(worker)
        self._notify(f"worker {worker.index} starting")
        try:
            start = await launch(worker, around.runtime, Need.of(self.spec))
            assert worker.process is not None
            await around.store.save_engine(SavedEngine(self.spec.name, worker.index, worker.generation, worker.process))
            await wait_ready(worker, start, around.runtime, around.pool, self._teller(worker))
        except ByzerError as error:
            await self._kill(worker)
            self._went_down(worker, error)
            return
        for note in await notes(worker, around.runtime) if self._settling else ():
            if note not in self._noted:
                self._noted.add(note)
                self._notify(note, lasting=True)
        self._into_rotation(worker)
        log.info("%s: worker %d is ready (pid %d)", self.spec.name, worker.index, worker.process.pid)
        self._notify(f"worker {worker.index} ready")

    async def _readopt_worker(self, worker: EngineWorker, process: EngineProcess) -> None:
        """It ran under an earlier server, but may have been loading still, or hang."""
        start = worker.plan.engine.command(worker.plan.options, process.host, process.port, process.token)
        try:
            await wait_ready(worker, start, self._around.runtime, self._around.pool, self._teller(worker))
        except ByzerError as error:
            await self._kill(worker)
            self._went_down(worker, error)
            return
        self._into_rotation(worker)
        log.info("%s: worker %d was re-adopted (pid %d)", self.spec.name, worker.index, process.pid)

    def _teller(self, worker: EngineWorker) -> Callable[[str], None]:
        return lambda doing: self._notify(f"worker {worker.index}: {doing}")

    def _into_rotation(self, worker: EngineWorker) -> None:
        self.instance.set_unavailable(None)
        worker.phase, worker.error, worker.missed_probes = Phase.READY, "", 0
        worker.ready_at = self._loop.time()
        worker.probe_at = worker.ready_at + self._around.probe_interval
        if worker.slot is None:
            slots = worker.plan.options.slots
            worker.slot = Worker(worker.index, worker.id, slots, worker.upstream(), worker.ready_at)
            self.instance.add(worker.slot)
        else:
            worker.slot.upstream = worker.upstream()
            self.instance.set_up(worker.slot, True)

    def _went_down(self, worker: EngineWorker, error: ByzerError) -> None:
        now = self._loop.time()
        if worker.ready_at and now - worker.ready_at > STEADY_AFTER:
            worker.failures = 0
        worker.ready_at = 0.0
        worker.failures += 1
        worker.restarts += 1
        pause = restart_pause(worker.failures)
        worker.phase, worker.retry_at, worker.error = Phase.WAITING, now + pause, str(error)
        if worker.slot is not None:
            self.instance.set_up(worker.slot, False)
        if worker.failures >= _FAILURES_TO_REFUSE and self.state()[0] is State.FAILED:
            self.instance.set_unavailable(str(error))
        log.warning("%s: %s Next start in %.1f s.", self.spec.name, error, pause)
        if self._settling and self._failure is None and worker.generation == self.generation:
            self._failure = error

    async def _probe(self, worker: EngineWorker) -> None:
        """A process is hung when it misses several probes while no byte of any answer comes from it."""
        alive = await probe(worker, self._around.pool, self._around.probe_interval)
        progress = worker.slot.progress if worker.slot else 0
        if alive or progress != worker.seen_progress:
            worker.missed_probes = 0
        else:
            worker.missed_probes += 1
        worker.seen_progress = progress
        if worker.missed_probes >= _PROBES_TO_BE_HUNG and worker.phase is Phase.READY:
            await self._kill(worker)
            self._went_down(worker, DeploymentFailed(f"Worker {worker.index} hung: it answered no probe."))

    async def _kill(self, worker: EngineWorker) -> None:
        if worker.process is not None:
            await self._around.runtime.stop(worker.process, grace=0)
            await self._around.store.delete_engine(worker.id)
            worker.process = None

    async def _end(self, worker: EngineWorker) -> None:
        """Stop the worker's process for good and forget the worker."""
        worker.phase = Phase.STOPPING
        if worker.slot is not None and not worker.slot.retired:
            self.instance.retire(worker.slot, lambda: None)
        if worker.process is not None:
            await self._around.runtime.stop(worker.process, grace=self._around.stop_grace)
            await self._around.store.delete_engine(worker.id)
        self._workers.pop(worker.id, None)
