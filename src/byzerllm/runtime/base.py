"""The seam for a runtime: where engine processes run. Embedded (this machine) is one, a Ray cluster another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec

from byzerllm.engines.base import Launch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Sequence

    from byzerllm.spec import DeploymentSpec

Command = Callable[[str, int], Launch]
"""Host and port on which the engine is to listen -> how it is launched."""

Waiting = Callable[[str], None]
"""Told why a worker cannot be placed yet, in words fit for a person; empty when it is."""


@dataclass(frozen=True)
class Need:
    """What one worker takes of the runtime. ``resources`` are a Ray cluster's own, by name."""

    cpus: float = 0.0
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Need) -> Need:
        names = {*self.resources, *other.resources}
        resources = {name: self.resources.get(name, 0.0) + other.resources.get(name, 0.0) for name in names}
        return Need(self.cpus + other.cpus, self.gpus + other.gpus, resources)

    @classmethod
    def of(cls, spec: DeploymentSpec) -> Need:
        """What each worker of ``spec`` takes."""
        return cls(spec.cpus_per_worker, spec.gpus_per_worker, spec.resources)


def instance_of(worker_id: str) -> str:
    """The instance that a worker of this id (``NAME.GENERATION.INDEX``) belongs to."""
    return worker_id.rsplit(".", 2)[0]


class EngineProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A running engine process: all that is needed to find it again after the server's own restart.

    ``started`` is the process's creation time as the operating system tells it, so that a recycled ``pid`` is never
    taken for the engine. ``gpus`` are the devices that it was given, ``node`` is the cluster's machine that it runs on.
    """

    worker_id: str
    pid: int
    started: float
    host: str
    port: int
    token: str
    log: str
    gpus: tuple[int | str, ...] = ()
    node: str = ""

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"EngineProcess(worker_id={self.worker_id!r}, pid={self.pid}, url={self.base_url})"  # without the token


class OutOfMemory(msgspec.Struct, frozen=True):
    """Bytes of memory: the most that a process had (0: not known), and what there is for all."""

    peak: int
    limit: int


class Exit(msgspec.Struct, frozen=True):
    """How a process ended: its exit code (negative: the signal; None: not known) and its last log lines.

    ``lost`` says what became of it where nobody saw its end (``its node is gone``). ``out_of_memory`` is there when the
    kernel has killed a process for lack of memory just before: this one, if it ended by signal 9.
    """

    code: int | None
    tail: str
    lost: str = ""
    out_of_memory: OutOfMemory | None = None


class Capacity(msgspec.Struct, frozen=True):
    """What the runtime has in all."""

    cpus: float
    gpus: float


class Room(msgspec.Struct, frozen=True):
    """Memory in bytes, of a machine or of one GPU. ``holders`` say what has the rest, in words fit for a person."""

    free: int
    total: int
    holders: tuple[str, ...] = ()

    def with_free(self, free: int) -> Room:
        """The same with so much free."""
        return msgspec.structs.replace(self, free=free)

    def as_empty(self) -> Room:
        """The same with nothing in it."""
        return Room(self.total, self.total)


class Site(msgspec.Struct, frozen=True):
    """A machine that can take workers of an instance, and the memory that these find there.

    ``room`` is None where the machine did not tell. ``places`` is how many its CPUs, GPUs and the like are enough for,
    ``own`` of them run there already. ``gpus`` is the memory of each GPU that they may get, where what the instance
    itself holds counts as free: it stays there or leaves; None where the driver does not tell. ``node`` is its id;
    empty where no worker can be placed yet, and its memory is what it will be once all others have left. A machine of a
    cluster has an address, ``host``.
    """

    room: Room | None
    places: int
    own: int = 0
    gpus: tuple[Room, ...] | None = ()
    node: str = ""
    host: str = ""


class Runtime(Protocol):
    """Starts, watches and stops engine processes, and gives each its share of the machine. Every call is idempotent."""

    name: str

    async def admit(self, spec: DeploymentSpec, others: Iterable[DeploymentSpec], *, patient: bool) -> None:
        """Refuse what can never run beside the ``others``; with ``patient`` the caller waits until more is there.

        Raises:
            CapacityExceeded: with the numbers.
            InvalidInput: it asks for what this runtime does not have at all.
        """
        ...

    def has_room(self, need: Need) -> bool:
        """Whether one worker more would be placed at once, as far as is known. Never blocks."""
        ...

    async def memory(self, spec: DeploymentSpec, *, on_gpu: bool) -> list[Site]:
        """The machines that can take workers of ``spec``, with the GPUs' memory where it is for them (``on_gpu``)."""
        ...

    def prefer(self, instance: str, nodes: Sequence[str]) -> None:
        """Place the next workers that are started of the instance on these nodes, one on each, if that can be."""
        ...

    def reserve(self, spec: DeploymentSpec, workers: int) -> None:
        """Hold the CPUs of a SaaS instance's ``workers`` (0: of none any more), where the runtime keeps such books.

        Never blocks: the instance does not need them, and goes on where they cannot be had.
        """
        ...

    async def start(
        self, worker_id: str, need: Need, command: Command, *, token: str, waiting: Waiting
    ) -> EngineProcess:
        """Find the worker its place, start its process there and return; it is not ready yet.

        Where there is no place it waits for one and says why. Cancelling it leaves nothing.

        Raises:
            CapacityExceeded: there is no place, and this runtime does not wait.
            DeploymentFailed: the process could not be created at all.
        """
        ...

    async def stop(self, process: EngineProcess, *, grace: float) -> None:
        """Ask the process and its children to end; kill the rest after ``grace`` seconds; return when it is gone.

        Its share of the machine is free again.
        """
        ...

    async def sweep(self, instances: Collection[str], workers: Collection[str]) -> None:
        """Free what belongs to no instance and worker of these names: a server died before it had written it down."""
        ...

    def poll(self, process: EngineProcess) -> Exit | None:
        """None while it runs. Never blocks."""
        ...

    async def adopt(self, process: EngineProcess, need: Need) -> bool:
        """Take back a process that an earlier server started; False when it no longer runs."""
        ...

    def logs(self, worker_id: str, *, tail: int, follow: bool) -> AsyncIterator[bytes]:
        """The last ``tail`` lines of a worker's log, then what is added to it while ``follow``."""
        ...
