"""Engine processes of one machine: start, watch, stop and find again. Each runtime does it with this."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import resource
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from byzerllm.errors import DeploymentFailed, NotFound
from byzerllm.runtime import processes
from byzerllm.runtime.base import EngineProcess, Exit, OutOfMemory
from byzerllm.runtime.out_of_memory import Kernel, Kills
from byzerllm.runtime.worker_log import Follower, WorkerLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from byzerllm.engines.base import Launch

# Below the ports that the kernel gives to outgoing connections, so that none of these can take one meanwhile.
FIRST_PORT, LAST_PORT = 20_000, 32_000
FOLLOW_SECONDS = 0.2
WAIT_SECONDS = 0.02
KILL_SECONDS = 60.0
CLEAN_SECONDS = 5.0
KILLS_SECONDS = 1.0  # between two looks at what the kernel has killed, while nothing ends

_OF_THE_SERVER = frozenset(("BYZERLLM_API_KEY", "BYZERLLM_LISTEN_FD", "BYZERLLM_SECRETS_FD", "BYZERLLM_SUPERVISOR_PID"))
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Child:
    worker_id: str
    started: float  # by our own clock


@dataclass(frozen=True)
class _Ended:
    pid: int
    code: int | None
    out_of_memory: OutOfMemory | None


class LocalProcesses:
    """Engine processes of this machine, each the leader of its own session, each with a log in ``logs_dir``.

    They outlive whoever started them: the next one takes them back with ``adopt``. They listen on ``host``.
    """

    def __init__(self, logs_dir: Path, host: str) -> None:
        self._logs_dir = logs_dir
        self.host = host
        self._children: dict[int, _Child] = {}  # by pid, until the process was waited for
        self._ended: dict[str, _Ended] = {}
        self._kernel = Kernel.here()
        self._kills = Kills(self._kernel.kills())
        self._looked = float("-inf")
        self._port = random.randrange(FIRST_PORT, LAST_PORT)

    async def start(
        self, worker_id: str, launch: Launch, *, port: int, token: str, devices: str, gpus: Sequence[int | str] = ()
    ) -> EngineProcess:
        """Start a process and return at once; it is not ready yet.

        ``devices`` is its ``CUDA_VISIBLE_DEVICES``, ``gpus`` what the runtime calls them.

        Raises:
            DeploymentFailed: the process could not be created at all.
        """
        environ = _environ(launch, devices)
        since = time.monotonic()
        self._notice_kills(since)
        loop = asyncio.get_running_loop()
        spawned = loop.run_in_executor(None, self._spawn, worker_id, launch.argv, environ)
        try:
            pid, started = await asyncio.shield(spawned)
        except asyncio.CancelledError:
            spawned.add_done_callback(_kill_spawned)  # nobody will know of it
            raise
        except OSError as error:
            raise DeploymentFailed(f"The process of worker {worker_id} could not be started: {error}.") from error
        self._children[pid] = _Child(worker_id, since)
        self._ended.pop(worker_id, None)
        return EngineProcess(
            worker_id=worker_id,
            pid=pid,
            started=started,
            host=self.host,
            port=port,
            token=token,
            log=str(self._log(worker_id).path),
            gpus=tuple(gpus),
        )

    async def stop(self, process: EngineProcess, *, grace: float) -> None:
        """Ask the process and its children to end; kill it if it is left after ``grace`` seconds.

        Its children end by themselves then, and remove what they had; they are killed if they do not. Returns when it
        is gone.
        """
        self._signal(process, signal.SIGTERM)
        if not await self._gone(process, grace):
            self._signal(process, signal.SIGKILL, os.kill)
        while not await self._gone(process, KILL_SECONDS):
            _log.warning(
                "Worker %s (process %d) is still there %g s after SIGKILL: the system holds it, perhaps in a driver.",
                process.worker_id,
                process.pid,
                KILL_SECONDS,
            )
        await _until(lambda: not self._signal(process, 0), CLEAN_SECONDS)
        self._signal(process, signal.SIGKILL)

    def poll(self, process: EngineProcess) -> Exit | None:
        """None while it runs. Never blocks; at the end it reads some KiB of the log."""
        if self._running(process):
            if time.monotonic() - self._looked >= KILLS_SECONDS:
                self._notice_kills(time.monotonic())
            return None
        ended = self._ended.get(process.worker_id)
        if ended is None or ended.pid != process.pid:  # it was not our child
            ended = self._note_end(process.pid, _Child(process.worker_id, float("-inf")), None, 0)
        return Exit(ended.code, self._log(process.worker_id).last_words(), out_of_memory=ended.out_of_memory)

    def adopt(self, process: EngineProcess) -> bool:
        """Take back a process that an earlier server started; False when it no longer runs."""
        return self._running(process)

    def free_port(self) -> int:
        """A port on ``host`` that nothing listens on; one is given out again only after all others were.

        Raises:
            DeploymentFailed: there is none.
        """
        for _ in range(FIRST_PORT, LAST_PORT):
            self._port = self._port + 1 if self._port + 1 < LAST_PORT else FIRST_PORT
            with socket.socket() as probe, suppress(OSError):
                probe.bind((self.host, self._port))
                return self._port
        raise DeploymentFailed(f"No port from {FIRST_PORT} to {LAST_PORT} is free for an engine.")

    async def logs(self, worker_id: str, *, tail: int, follow: bool) -> AsyncIterator[bytes]:
        """The last ``tail`` lines of a worker's log, then what is added to it while ``follow``, until it is closed.

        Raises:
            NotFound: no worker of that name was ever started here.
        """
        follower = self.follower(worker_id)
        first = await asyncio.to_thread(follower.tail, tail)
        if first is None:
            raise NotFound(f"Worker {worker_id} has no log.")
        yield first
        while follow:
            more = await asyncio.to_thread(follower.more)
            if more:
                yield more
            else:
                await asyncio.sleep(FOLLOW_SECONDS)

    def follower(self, worker_id: str, position: tuple[int, int] = (0, 0)) -> Follower:
        """A reader of the worker's log, whether there is one or not. It blocks."""
        return Follower(self._log(worker_id), position)

    def _log(self, worker_id: str) -> WorkerLog:
        return WorkerLog(self._logs_dir / f"{worker_id}.log")

    def _spawn(self, worker_id: str, argv: Sequence[str], environ: dict[str, str]) -> tuple[int, float]:
        log = self._log(worker_id).open_for_start(worker_id)
        try:
            child = subprocess.Popen(
                argv,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        # We wait for it ourselves; left to Popen, its end would be looked for whenever the object dies.
        child.returncode = 0
        return child.pid, processes.creation_time(child.pid)

    async def _gone(self, process: EngineProcess, seconds: float) -> bool:
        return await _until(lambda: not self._running(process), seconds)

    def _running(self, process: EngineProcess) -> bool:
        if process.pid not in self._children or processes.is_other(process.pid, process.started):
            return processes.runs(process.pid, process.started)
        try:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        except ChildProcessError:  # someone else has waited for it: how it ended is not known
            self._note_end(process.pid, self._children.pop(process.pid), None, 0)
            return False
        if not pid:
            return True
        code = os.waitstatus_to_exitcode(status)
        self._note_end(pid, self._children.pop(pid), code, _peak(usage))
        return False

    def _note_end(self, pid: int, child: _Child, code: int | None, peak: int) -> _Ended:
        self._notice_kills(time.monotonic())
        killed = self._kills.take(child.started) if code == -signal.SIGKILL else self._kills.since(child.started)
        memory = OutOfMemory(peak, self._kernel.limit()) if killed and code not in (0, -signal.SIGTERM) else None
        ended = self._ended[child.worker_id] = _Ended(pid, code, memory)
        return ended

    def _notice_kills(self, now: float) -> None:
        self._kills.notice(self._kernel.kills(), now)
        self._looked = now

    def _signal(self, process: EngineProcess, number: int, send: Callable[[int, int], None] = os.killpg) -> bool:
        """Whether there is anything left of the process and its children that the signal could be sent to."""
        if processes.is_other(process.pid, process.started):
            return False
        try:
            send(process.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            return False
        return True


async def _until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in time. Looked for again and again, since the end of a process that is not our child is no
    event."""
    for _ in range(math.ceil(seconds / WAIT_SECONDS)):
        if condition():
            return True
        await asyncio.sleep(WAIT_SECONDS)
    return condition()


def _peak(ended: resource.struct_rusage) -> int:
    """The most memory that a child had, in bytes; 0 where that is not known: a child begins as a copy of ourselves, and
    what we have counts."""
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return ended.ru_maxrss * 1024 if ended.ru_maxrss > ours else 0  # KiB on Linux


def _environ(launch: Launch, devices: str) -> dict[str, str]:
    """Our variables but for those that are the server's own affair; a worker without a GPU sees none. GPUs are counted
    as nvidia-smi does; by itself CUDA begins with the fastest."""
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_THE_SERVER}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **inherited, **launch.env, "CUDA_VISIBLE_DEVICES": devices}


def _kill_spawned(spawned: asyncio.Future[tuple[int, float]]) -> None:
    if not spawned.cancelled() and spawned.exception() is None:
        pid, _ = spawned.result()
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
