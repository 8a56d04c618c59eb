"""The runtime of a Ray cluster: Ray places each engine's holder on a node, this keeps the server's view of them.

What Ray knows is asked for in tasks and threads of their own, so that nothing in the server's loop waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING

from byzerllm.errors import ByzerError, Conflict, DeploymentFailed, NotFound
from byzerllm.runtime.base import Exit, Need, instance_of
from byzerllm.runtime.nodes import Running, openings
from byzerllm.runtime.placement import ActorGone, bundles, check_need, check_possible, fits, wanted, why_waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Sequence

    from byzerllm.runtime.base import Command, EngineProcess, Site, Waiting
    from byzerllm.runtime.holder import Place
    from byzerllm.runtime.placement import Node
    from byzerllm.runtime.ray import Actor, Cluster
    from byzerllm.spec import DeploymentSpec

_PREFIX, _READER = "engine:", "log:"
HOLDER = "byzerllm.runtime.holder:EngineHolder"
MEASURE = "byzerllm.runtime.memory:measure"
FIRST_LOOK, NEXT_LOOK = 1.2, 1.0  # seconds after which a worker without a place is told why
ANSWER_SECONDS = 10.0  # for a call that does next to nothing
ADOPT_SECONDS = 2.0  # the same where a whole server waits for it
FOLLOW_SECONDS = 0.3
VIEW_SECONDS = 1.0  # how old the view of the nodes may be

log = logging.getLogger(__name__)


@dataclass
class _Held:
    """One worker: what it takes, the actor that holds its process, and how that ended."""

    need: Need
    actor: Actor
    process: EngineProcess | None = None
    placed: bool = False  # it has what it takes, as far as Ray has told
    ended: Exit | None = None
    watch: asyncio.Task[None] | None = None


@dataclass
class _View:
    """The nodes as they were a moment ago."""

    nodes: list[Node] = field(default_factory=list)
    at: float = float("-inf")
    refresh: asyncio.Task[list[Node]] | None = None


class RayRuntime:
    """Engine processes on the nodes of a cluster, each held by a detached actor that outlives the server."""

    name = "ray"

    def __init__(self, cluster: Cluster, logs: str, now: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._now = now
        self._logs = logs
        self._held: dict[str, _Held] = {}
        self._view = _View()
        self._reserved: dict[str, Need] = {}
        self._last_node: dict[str, str] = {}  # of each worker that was started
        self._preferred: dict[str, list[str]] = {}  # for the next workers of an instance
        self._books = ThreadPoolExecutor(1, thread_name_prefix="reservations")  # one after the other, in order

    # -- Runtime -------------------------------------------------------------------------------------------------

    async def admit(self, spec: DeploymentSpec, others: Iterable[DeploymentSpec], *, patient: bool) -> None:
        """Refuse what no node of the cluster could ever take, unless the caller is patient: nodes may come."""
        check_need(spec)
        if not spec.is_saas and not patient:
            check_possible(Need.of(spec), await self._nodes())

    def has_room(self, need: Need) -> bool:
        """Whether a node had all of it free a moment ago."""
        if self._now() - self._view.at > VIEW_SECONDS:
            self._refresh()
        return fits(need, self._view.nodes)

    async def memory(self, spec: DeploymentSpec, *, on_gpu: bool) -> list[Site]:
        """The nodes that can take a worker now, or else those that can once others have left. Measured there: what Ray
        calls a node's memory is only what it was told."""
        running = [Running(held.process, held.need) for held in self._held.values() if held.process is not None]
        found = openings(spec, await self._nodes(), running)
        ids = [opening.node.id for opening in found]
        told = await asyncio.to_thread(self._cluster.run_on, ids, MEASURE, on_gpu, timeout=ANSWER_SECONDS)
        if silent := [opening.node.host for opening in found if opening.node.id not in told]:
            log.warning("%s goes last, and unchecked, to %s: no answer on free memory", spec.name, ", ".join(silent))
        return [opening.site(*told.get(opening.node.id, (None, ())), on_gpu=on_gpu) for opening in found]

    def prefer(self, instance: str, nodes: Sequence[str]) -> None:
        """Remember it for the next starts. A worker that is started again prefers the node where it last ran. One that
        takes nothing at all is put anywhere by Ray."""
        self._preferred[instance] = list(nodes)

    def reserve(self, spec: DeploymentSpec, workers: int) -> None:
        """Hold the CPUs of a SaaS instance's workers, so that the cluster's own books are right; at no process each."""
        self._books.submit(self._enter, spec.name, spec.cpus_per_worker * workers)

    def _enter(self, instance: str, cpus: float) -> None:
        try:
            if not cpus:
                self._reserved.pop(instance, None)
                self._cluster.release(instance)
            elif self._cluster.reserve(instance, bundles(cpus, self._cluster.nodes())):
                self._reserved[instance] = Need(cpus)
            else:
                log.warning("the cluster has no %g CPUs free: those of %s are counted once they are", cpus, instance)
        except ByzerError as error:
            log.warning("the cluster does not count the CPUs of %s: %s", instance, error)

    def close(self) -> None:
        """Return when the cluster's books are what they were told to be; nothing may be entered after it."""
        self._books.shutdown()

    async def start(
        self, worker_id: str, need: Need, command: Command, *, token: str, waiting: Waiting
    ) -> EngineProcess:
        """Have Ray place the worker, start its process there and return; it is not ready yet."""
        held = _Held(need, await self._create(worker_id, need))
        self._held[worker_id] = held
        try:
            place = await self._placed(held, waiting)
            held.process = await held.actor.call("start", command(place.host, place.port), place.port, token)
        except BaseException as error:
            del self._held[worker_id]
            await asyncio.shield(asyncio.to_thread(held.actor.kill))
            if isinstance(error, ActorGone):
                raise DeploymentFailed(f"Worker {worker_id} could not be placed: {error}.") from None
            raise
        self._last_node[worker_id] = place.node
        self._watch(held)
        return held.process

    async def stop(self, process: EngineProcess, *, grace: float) -> None:
        """End the engine, and free what its worker held on its node; nothing where that is another process's by now."""
        held = self._held.get(process.worker_id)
        if held is not None:
            if held.process != process:
                return
            del self._held[process.worker_id]
            if held.watch is not None:
                held.watch.cancel()
        actor = held.actor if held else await asyncio.to_thread(self._cluster.find, _name(process.worker_id))
        if actor is None:
            return
        with suppress(ActorGone, asyncio.TimeoutError, ByzerError):  # then it is killed without having been asked
            if not await actor.call("stop", process.pid, process.started, grace, timeout=grace + ANSWER_SECONDS):
                return
        await asyncio.to_thread(actor.kill)

    async def sweep(self, instances: Collection[str], workers: Collection[str]) -> None:
        """Free what the cluster holds for others than these."""
        await asyncio.to_thread(self._sweep, {_name(worker) for worker in workers}, set(instances))

    def _sweep(self, holders: set[str], instances: set[str]) -> None:
        for name in self._cluster.names():
            ours = name.startswith((_PREFIX, _READER)) and name not in holders
            left = self._cluster.find(name) if ours else None
            if left is not None:
                left.kill()
        for instance in self._cluster.reservations():
            if instance not in instances:
                self._cluster.release(instance)

    def poll(self, process: EngineProcess) -> Exit | None:
        """How it ended, as far as the cluster has told."""
        held = self._held.get(process.worker_id)
        if held is None or held.process != process:
            return Exit(None, "", lost="it is not held by this cluster")
        return held.ended

    async def adopt(self, process: EngineProcess, need: Need) -> bool:
        """Take back a process whose holder still runs."""
        actor = await asyncio.to_thread(self._cluster.find, _name(process.worker_id))
        if actor is None:
            return False
        try:
            if not await actor.call("holds", process.pid, process.started, timeout=ADOPT_SECONDS):
                return False
        except ActorGone:
            return False
        except asyncio.TimeoutError:
            log.warning("the holder of worker %s is slow to answer; it is taken back as it is", process.worker_id)
        self._held[process.worker_id] = held = _Held(need, actor, process)
        self._last_node[process.worker_id] = process.node
        self._watch(held)
        return True

    async def logs(self, worker_id: str, *, tail: int, follow: bool) -> AsyncIterator[bytes]:
        """The last lines of a worker's log, wherever it runs, then what is added to it, by its next starts too.

        Raises:
            NotFound: the worker has no place now.
        """
        position: tuple[int, int] | None = None
        while True:
            held, text, first = self._held.get(worker_id), b"", position is None
            try:
                if held is not None and held.process is not None:
                    text, position = await held.actor.call("read_log", position, tail, timeout=ANSWER_SECONDS)
                elif first:
                    text = await self._left_log(worker_id, tail)
                    position = (0, 0)
            except (ActorGone, asyncio.TimeoutError) as gone:
                if first:
                    reason = str(gone) or "its node does not answer"
                    raise NotFound(f"The log of worker {worker_id} cannot be read: {reason}.") from None
            if text or first:
                yield text
            if not follow:
                return
            if not text:
                await asyncio.sleep(FOLLOW_SECONDS)

    async def _left_log(self, worker_id: str, tail: int) -> bytes:
        """The log of a worker that runs nowhere now, read where it last ran."""
        node = self._last_node.get(worker_id)
        if node is None:
            raise ActorGone("it runs on no node now, and its log is where it ran")
        name = f"{_READER}{worker_id}:{token_hex(4)}"
        reader = await made(lambda: self._cluster.create(HOLDER, name, worker_id, self._logs, 1.0, node=node))
        try:
            text, _ = await reader.call("read_log", None, tail, timeout=ANSWER_SECONDS)
        finally:
            await asyncio.shield(asyncio.to_thread(reader.kill))
        return bytes(text)

    # -- helpers -------------------------------------------------------------------------------------------------

    async def _create(self, worker_id: str, need: Need) -> Actor:
        preferred = self._preferred.get(instance_of(worker_id))
        node = preferred.pop(0) if preferred else self._last_node.get(worker_id, "")

        def create() -> Actor:
            return self._cluster.create(
                *(HOLDER, _name(worker_id), worker_id, self._logs, need.cpus),
                cpus=need.cpus,
                gpus=need.gpus,
                resources=need.resources,
                preferred=node,
            )

        try:
            return await made(create)
        except Conflict:  # a holder that was left by a server which died before it had noted it
            left = await asyncio.to_thread(self._cluster.find, _name(worker_id))
            if left is not None:
                await asyncio.to_thread(left.kill)
            return await made(create)

    async def _placed(self, held: _Held, waiting: Waiting) -> Place:
        """Wait until Ray has placed the holder; meanwhile say why it has not."""
        answer: asyncio.Task[Place] = asyncio.ensure_future(held.actor.call("place"))
        pause = FIRST_LOOK
        try:
            while not (await asyncio.wait((answer,), timeout=pause))[0]:
                nodes = await self._nodes()
                await self._look_who_waits(held.need)
                waiting("" if held.placed else why_waiting(held.need, nodes, self._held_by_instance()))
                pause = NEXT_LOOK
        except asyncio.CancelledError:
            answer.cancel()
            raise
        waiting("")
        return answer.result()

    async def _look_who_waits(self, need: Need) -> None:
        """Tell those that wait for a place from those whose actor is starting in it: Ray knows how many wait."""
        queued = await asyncio.to_thread(self._cluster.queued, wanted(need))
        unknown = [held for held in self._held.values() if held.process is None and held.need == need]
        for number, held in enumerate(unknown):  # the oldest first, as Ray does
            held.placed = number < len(unknown) - queued

    def _held_by_instance(self) -> dict[str, Need]:
        """What the placed workers of each instance have in all."""
        sums = dict(self._reserved)
        for worker_id, held in self._held.items():
            if held.process is not None or held.placed:
                name = instance_of(worker_id)
                sums[name] = sums.get(name, Need()) + held.need
        return sums

    def _watch(self, held: _Held) -> None:
        held.watch = asyncio.ensure_future(self._until_ended(held))

    async def _until_ended(self, held: _Held) -> None:
        try:
            held.ended = await held.actor.call("wait")
        except ActorGone as gone:
            held.ended = Exit(None, "", lost=str(gone))

    def _refresh(self) -> asyncio.Task[list[Node]]:
        """Look at the nodes, once at a time."""
        view = self._view
        if view.refresh is None:
            view.refresh = asyncio.ensure_future(self._look())
            view.refresh.add_done_callback(lambda _: setattr(view, "refresh", None))
        return view.refresh

    async def _look(self) -> list[Node]:
        nodes = await asyncio.to_thread(self._cluster.nodes)
        self._view.nodes, self._view.at = nodes, self._now()
        return nodes

    async def _nodes(self) -> list[Node]:
        return await asyncio.shield(self._refresh())


def _name(worker_id: str) -> str:
    """The actor's name."""
    return _PREFIX + worker_id


async def made(create: Callable[[], Actor]) -> Actor:
    """The new actor; killed again if nobody waits for it any more when it is there."""
    making = asyncio.ensure_future(asyncio.to_thread(create))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        await asyncio.shield(asyncio.ensure_future(_unmade(making)))
        raise


async def _unmade(making: asyncio.Future[Actor]) -> None:
    with suppress(ByzerError):
        await asyncio.to_thread((await making).kill)
