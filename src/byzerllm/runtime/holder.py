"""The actor that holds one engine process on the node of a Ray cluster where Ray has placed it.

A plain class: ``ray.py`` makes an actor of it. The engine lives and dies with it, and it outlives the server.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import msgspec

from byzerllm.errors import DeploymentFailed
from byzerllm.runtime import processes
from byzerllm.runtime.local import LocalProcesses

if TYPE_CHECKING:
    from byzerllm.engines.base import Launch
    from byzerllm.runtime.base import EngineProcess, Exit

POLL_SECONDS = 0.1
GUARDIAN_SECONDS = 10.0  # for a shell to go to the background

# Kills the engine when the holder is gone, however that came about: its end closes the pipe; and, a little later, those
# of its children that have not ended by themselves. A line dismisses it. It goes to the background, since Ray kills the
# direct children of an actor that it kills.
_GUARDIAN = """
end() {
  kill -9 "$1"
  for look in 1 2 3 4 5; do sleep 1; kill -0 "-$1" || return; done
  kill -9 "-$1"
}
exec 3<&0; { read -r line <&3 || end "$1"; } & exec 3<&-
"""


class Place(NamedTuple):
    """Where the engine is to listen, and what it was given there."""

    host: str
    port: int
    gpus: tuple[str, ...]
    node: str


class EngineHolder:
    """Starts, watches and stops the process of one worker that was given ``cpus``."""

    def __init__(self, worker_id: str, logs: str, cpus: float) -> None:
        from byzerllm.runtime.ray import here  # only where the actor runs

        host, self._node, self._gpus = here()
        self._worker_id = worker_id
        self._processes = LocalProcesses(Path(logs), host)
        processes.take_normal_priority()
        if cpus < 1:  # Ray takes the share for a number of threads
            os.environ.pop("OMP_NUM_THREADS", None)
        self._process: EngineProcess | None = None
        self._guardian: BinaryIO | None = None

    async def place(self) -> Place:
        """Where the engine is to listen; answers as soon as Ray has placed this actor."""
        return Place(self._processes.host, self._processes.free_port(), self._gpus, self._node)

    async def start(self, launch: Launch, port: int, token: str) -> EngineProcess:
        """Start the engine on the port that ``place`` gave.

        Raises:
            DeploymentFailed: the process could not be created at all.
        """
        started = await self._processes.start(
            self._worker_id, launch, port=port, token=token, devices=",".join(self._gpus), gpus=self._gpus
        )
        try:
            self._guardian = await asyncio.to_thread(_guard, started.pid)
        except (OSError, subprocess.TimeoutExpired) as error:
            await self._processes.stop(started, grace=0)
            raise DeploymentFailed(f"The guardian of worker {self._worker_id} cannot be started: {error}.") from None
        self._process = msgspec.structs.replace(started, node=self._node)
        return self._process

    async def holds(self, pid: int, started: float) -> bool:
        """Whether that is the process it holds, and it runs."""
        held = self._process
        return held is not None and _is(held, pid, started) and self._processes.poll(held) is None

    async def wait(self) -> Exit:
        """Return how the engine ended, once it has."""
        assert self._process is not None
        while True:
            ended = self._processes.poll(self._process)
            if ended is not None:
                self._dismiss_guardian()
                return ended
            await asyncio.sleep(POLL_SECONDS)

    async def stop(self, pid: int, started: float, grace: float) -> bool:
        """End that process and its children; kill what is left after ``grace`` seconds. False if it holds another."""
        held = self._process
        if held is None or not _is(held, pid, started):
            return False
        await self._processes.stop(held, grace=grace)
        self._dismiss_guardian()
        return True

    async def read_log(self, position: tuple[int, int] | None, tail: int) -> tuple[bytes, tuple[int, int]]:
        """The last ``tail`` lines, or with a position what was added since; and the position after it."""
        follower = self._processes.follower(self._worker_id, position or (0, 0))
        text = (
            await asyncio.to_thread(follower.tail, tail) if position is None else await asyncio.to_thread(follower.more)
        )
        return text or b"", follower.position

    def _dismiss_guardian(self) -> None:
        guardian, self._guardian = self._guardian, None
        if guardian is not None:
            with suppress(OSError):  # somebody has killed it
                guardian.write(b"\n")
                guardian.close()


def _is(held: EngineProcess, pid: int, started: float) -> bool:
    return (held.pid, held.started) == (pid, started)


def _guard(pid: int) -> BinaryIO:
    """Start the guardian of a process; what is returned dismisses it with a line, and must not be closed without."""
    guardian = subprocess.Popen(
        ["/bin/sh", "-c", _GUARDIAN, "byzerllm-guardian", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        bufsize=0,
    )
    assert guardian.stdin is not None
    if guardian.wait(GUARDIAN_SECONDS):
        guardian.stdin.close()
        raise OSError(f"exit code {guardian.returncode}")
    return cast("BinaryIO", guardian.stdin)
