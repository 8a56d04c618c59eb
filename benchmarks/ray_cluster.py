"""A Ray cluster of one node for a benchmark, in a folder and on a port of its own, and what its processes take."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from benchmarks.contenders import CORES, free_port, running

START_SECONDS = 60.0
END_SECONDS = 10.0
_WORKER_PORTS = range(10_000, 20_000)  # Ray gives these to its workers
_ROLLUP = Path("/proc/self/smaps_rollup")


@dataclass(frozen=True)
class Cluster:
    """``pid`` is the process above all others of the cluster; ``seconds`` is how long ``ray start`` took."""

    address: str
    pid: int
    seconds: float

    def actors(self, kind: str) -> list[psutil.Process]:
        """The processes of the actors of a class, those first that were created first."""
        found = [process for process in self._processes() if _title(process).startswith(f"ray::{kind}")]
        return sorted(found, key=lambda process: process.create_time())

    def _processes(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)


@contextlib.contextmanager
def cluster(cpus: int) -> Iterator[Cluster]:
    """A head node that offers ``cpus``; all of its processes are gone afterwards.

    Raises:
        RuntimeError: Ray is not installed here, it did not start, or this is not Linux.
    """
    if not _ROLLUP.exists():
        raise RuntimeError("ray: only Linux tells how much of their memory processes share")
    command = Path(sys.executable).with_name("ray")
    if not command.exists():
        raise RuntimeError(f"{command} does not exist: pip install 'ray>=2.47' into this environment")
    with _folder() as folder:
        port = _port()
        arguments = ["start", "--head", "--block", "--port", str(port), "--num-cpus", str(cpus)]
        arguments += ["--include-dashboard", "false", "--disable-usage-stats"]
        began = time.perf_counter()
        with running([str(command), *arguments], port, CORES, START_SECONDS, RAY_TMPDIR=folder) as pid:
            _wait_for_node(Path(folder))
            took = time.perf_counter() - began
            with _ended(pid):
                yield Cluster(f"127.0.0.1:{port}", pid, took)


def private_bytes(process: psutil.Process) -> int:
    """PSS: what a process has in memory, pages that it shares divided by the number of those that share them."""
    return int(process.memory_full_info().pss)


def pin(pid: int, cores: Sequence[int]) -> None:
    """Have all threads of a running process run on ``cores``."""
    for thread in psutil.Process(pid).threads() if cores else []:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(thread.id, cores)


def _port() -> int:
    while (port := free_port()) in _WORKER_PORTS:
        pass
    return port


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a short path: Ray's sockets lie in it
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_node(folder: Path) -> None:
    """``ray start`` leaves the address when its node is up, which is later than that the port is open."""
    limit = time.monotonic() + START_SECONDS
    while not (folder / "ray" / "ray_current_cluster").exists():
        if time.monotonic() > limit:
            raise RuntimeError(f"ray start has not brought its node up within {START_SECONDS:g} s")
        time.sleep(0.02)


@contextlib.contextmanager
def _ended(pid: int) -> Iterator[None]:
    """Afterwards nothing is left of what was below ``pid``, whether it ends when it is told to or not."""
    try:
        yield
    finally:
        left = psutil.Process(pid).children(recursive=True)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, stubborn = psutil.wait_procs(left, timeout=END_SECONDS)
        for process in stubborn:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""
