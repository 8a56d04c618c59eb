"""The nodes of a cluster that can take workers of an instance, and the memory that these find there: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from byzerllm.runtime.base import EngineProcess, Need, Site, instance_of
from byzerllm.runtime.placement import Node, places, wanted

if TYPE_CHECKING:
    from byzerllm.runtime.base import Room
    from byzerllm.runtime.memory import Device
    from byzerllm.spec import DeploymentSpec


@dataclass(frozen=True)
class Running:
    """A worker that runs on the cluster, and what it takes there."""

    process: EngineProcess
    need: Need


@dataclass(frozen=True)
class Opening:
    """A node that can take workers of an instance: how many, and what runs there already, of it and of others.

    ``now``: with what is free now; else once all others have left.
    """

    node: Node
    places: int
    own: Sequence[Running]
    others: Sequence[Running]
    now: bool

    def site(self, room: Room | None, devices: Sequence[Device], *, on_gpu: bool) -> Site:
        """The opening with the memory that was measured there; None and no devices where the node did not answer."""
        gpus = self._gpus(devices) if on_gpu else ()
        if self.now:
            return Site(room, self.places, len(self.own), gpus, self.node.id, self.node.host)
        return Site(room and room.as_empty(), self.places, 0, gpus, "", self.node.host)

    def _gpus(self, devices: Sequence[Device]) -> tuple[Room, ...] | None:
        """Which of the GPUs it is that Ray has free, it does not tell: all that no other instance of ours has whole."""
        if len(devices) < self.node.total.get("GPU", 0):
            return None  # the driver has not told of all; Ray counts parts of a divided one
        if not self.now:
            return tuple(device.room.as_empty() for device in devices)
        own = _devices(self.own)
        taken = _devices(running for running in self.others if running.need.gpus >= 1)
        return tuple(
            device.room.as_empty() if own & {device.index, device.uuid} else device.room
            for device in devices
            if not taken & {device.index, device.uuid}
        )


def openings(spec: DeploymentSpec, nodes: Sequence[Node], running: Iterable[Running]) -> list[Opening]:
    """The nodes that have a place for a worker of ``spec`` now, or would if its own workers left; if there are none,
    those that would if all left."""
    by_node: dict[str, list[Running]] = {node.id: [] for node in nodes}
    for worker in running:
        by_node.setdefault(worker.process.node, []).append(worker)

    def found(*, now: bool) -> list[Opening]:
        return [opening for node in nodes if (opening := _opening(spec, node, by_node[node.id], now=now)).places]

    return found(now=True) or found(now=False)


def _opening(spec: DeploymentSpec, node: Node, running: Sequence[Running], *, now: bool) -> Opening:
    own = [worker for worker in running if instance_of(worker.process.worker_id) == spec.name]
    others = [worker for worker in running if worker not in own]
    amounts = _with(node.free, own) if now else node.total
    return Opening(node, places(Need.of(spec), amounts, len(own) + spec.num_workers), own, others, now)


def _with(free: Mapping[str, float], own: Iterable[Running]) -> dict[str, float]:
    """What is free, and what these have."""
    amounts = dict(free)
    for worker in own:
        for name, amount in wanted(worker.need).items():
            amounts[name] = amounts.get(name, 0.0) + amount
    return amounts


def _devices(running: Iterable[Running]) -> set[str]:
    return {str(gpu) for worker in running for gpu in worker.process.gpus}
