"""The runtime that needs nothing: engines as subprocesses of the server, on this machine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from byzerllm.errors import InvalidInput
from byzerllm.runtime import capacity, memory
from byzerllm.runtime.base import Room, Site, instance_of
from byzerllm.runtime.ledger import Ledger
from byzerllm.runtime.local import LocalProcesses

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Sequence
    from pathlib import Path

    from byzerllm.runtime.base import Command, EngineProcess, Exit, Need, Waiting
    from byzerllm.runtime.memory import Device
    from byzerllm.spec import DeploymentSpec

HOST = "127.0.0.1"


class EmbeddedRuntime:
    """Engine processes of this machine; they outlive the server. CPUs are not divided, GPUs are.

    Make the object outside of an event loop, as it looks for GPUs.
    """

    name = "embedded"

    def __init__(self, logs_dir: Path) -> None:
        self._gpus = capacity.visible_gpus()
        self._ledger = Ledger(capacity.measure())
        self._processes = LocalProcesses(logs_dir, HOST)
        self._running: set[str] = set()

    async def admit(self, spec: DeploymentSpec, others: Iterable[DeploymentSpec], *, patient: bool) -> None:
        """Refuse what can never run beside the ``others``; there is nothing to wait for on one machine."""
        if spec.resources:
            raise InvalidInput(
                "--resources names what the nodes of a Ray cluster have, but this server runs on one machine only.",
                hint="Leave it out, or name the cluster with --ray_address HOST:PORT.",
                param="resources",
            )
        self._ledger.admit(spec, others)

    def has_room(self, need: Need) -> bool:
        """Whether one worker more would get its GPUs."""
        return self._ledger.has_room(need.gpus)

    async def memory(self, spec: DeploymentSpec, *, on_gpu: bool) -> list[Site]:
        """This machine."""
        room, devices = await asyncio.to_thread(memory.measure, on_gpu)
        own = sum(instance_of(worker_id) == spec.name for worker_id in self._running)
        gpus = self._rooms(spec, devices) if on_gpu else ()
        return [Site(room, own + spec.num_workers, own, gpus, self.name)]

    def _rooms(self, spec: DeploymentSpec, found: Iterable[Device]) -> tuple[Room, ...] | None:
        """The memory of each GPU that a worker of ``spec`` may get."""
        rooms = {name: device.room for device in found for name in (device.index, device.uuid)}
        places = {self._gpus[number]: is_own for number, is_own in self._ledger.places(spec).items()}
        if not places.keys() <= rooms.keys():
            return None
        return tuple(rooms[gpu].as_empty() if is_own else rooms[gpu] for gpu, is_own in places.items())

    def prefer(self, instance: str, nodes: Sequence[str]) -> None:
        """Nothing: there is one machine only."""

    def reserve(self, spec: DeploymentSpec, workers: int) -> None:
        """Nothing: a SaaS worker takes none of this machine."""

    async def start(
        self, worker_id: str, need: Need, command: Command, *, token: str, waiting: Waiting
    ) -> EngineProcess:
        """Start a process and return at once; it is not ready yet.

        Raises:
            CapacityExceeded: not enough GPUs are free.
            DeploymentFailed: the process could not be created at all.
        """
        gpus = self._ledger.take(worker_id, need.gpus)
        devices = ",".join(self._gpus[number] for number in gpus)
        try:
            port = self._processes.free_port()
            launch = command(HOST, port)
            started = await self._processes.start(worker_id, launch, port=port, token=token, devices=devices, gpus=gpus)
        except BaseException:
            self._ledger.drop(worker_id)
            raise
        self._running.add(worker_id)
        return started

    async def stop(self, process: EngineProcess, *, grace: float) -> None:
        """Ask the process and its children to end; kill what is left after ``grace`` seconds; its GPUs are free."""
        await self._processes.stop(process, grace=grace)
        self._ledger.drop(process.worker_id)
        self._running.discard(process.worker_id)

    async def sweep(self, instances: Collection[str], workers: Collection[str]) -> None:
        """Nothing: a process that nobody has written down is not known to be an engine."""

    def poll(self, process: EngineProcess) -> Exit | None:
        """None while it runs. Never blocks; at the end it reads some KiB of the log."""
        return self._processes.poll(process)

    async def adopt(self, process: EngineProcess, need: Need) -> bool:
        """Take back a process that an earlier server started; False when it no longer runs."""
        if not self._processes.adopt(process):
            return False
        self._ledger.hold(process.worker_id, tuple(int(number) for number in process.gpus), need.gpus)
        self._running.add(process.worker_id)
        return True

    def logs(self, worker_id: str, *, tail: int, follow: bool) -> AsyncIterator[bytes]:
        """The last ``tail`` lines of a worker's log, then what is added to it while ``follow``, until it is closed.

        Raises:
            NotFound: no worker of that name was ever started here.
        """
        return self._processes.logs(worker_id, tail=tail, follow=follow)
