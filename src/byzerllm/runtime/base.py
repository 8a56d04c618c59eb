"""The seam for a runtime: where engine processes run. Embedded (this machine) is one, a Ray cluster another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from byzerllm.engines.base import Launch


class EngineProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A running engine process: all that is needed to find it again after the server's own restart.

    ``started`` is the process's creation time as the operating system tells it, so that a recycled ``pid`` is never
    taken for the engine. ``gpus`` are the device numbers that it was given.
    """

    worker_id: str
    pid: int
    started: float
    host: str
    port: int
    token: str
    log: str
    gpus: tuple[int, ...] = ()

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}"


class Exit(msgspec.Struct, frozen=True):
    """How a process ended: its exit code (negative: the signal; None: not known) and its last log lines."""

    code: int | None
    tail: str


class Capacity(msgspec.Struct, frozen=True):
    """What the runtime has in all."""

    cpus: float
    gpus: float


class Runtime(Protocol):
    """Starts, watches and stops engine processes. Every call is idempotent."""

    name: str

    async def start(
        self, worker_id: str, launch: Launch, *, gpus: Sequence[int], port: int, token: str
    ) -> EngineProcess:
        """Start a process and return at once; it is not ready yet.

        Raises:
            DeploymentFailed: the process could not be created at all.
        """
        ...

    async def stop(self, process: EngineProcess, *, grace: float) -> None:
        """Ask the process and its children to end; kill the rest after ``grace`` seconds; return when it is gone."""
        ...

    def poll(self, process: EngineProcess) -> Exit | None:
        """None while it runs. Never blocks."""
        ...

    def adopt(self, process: EngineProcess) -> bool:
        """Take back a process that an earlier server started; False when it no longer runs."""
        ...

    def free_port(self) -> int:
        """A port on the engine's private address that nothing listens on and that was not given out before."""
        ...

    def capacity(self) -> Capacity: ...

    def logs(self, worker_id: str, *, tail: int, follow: bool) -> AsyncIterator[bytes]:
        """The last ``tail`` lines of a worker's log, then what is added to it while ``follow``."""
        ...
