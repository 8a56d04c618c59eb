"""The end of a real process, where the kernel's counter is ours to move."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.harness import eventually

from byzerllm.engines.base import Launch
from byzerllm.runtime.base import EngineProcess, Exit
from byzerllm.runtime.local import LocalProcesses
from byzerllm.runtime.out_of_memory import Kernel

MIB = 1024**2
HOLD = "import time; held = b'x' * {}; print('held', flush=True); time.sleep(600)"

Start = Callable[..., EngineProcess]


@pytest.fixture
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    group = tmp_path / "root" / "sys/fs/cgroup"
    group.mkdir(parents=True)
    path = group / "memory.events"
    path.write_text("oom_kill 5\n")
    (group / "memory.max").write_text(f"{200 * MIB}\n")
    kernel = Kernel.here(tmp_path / "root")
    monkeypatch.setattr(Kernel, "here", lambda: kernel)
    return path


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process, and returns when it has ``held`` bytes."""
    started: list[tuple[LocalProcesses, EngineProcess]] = []

    def begin(processes: LocalProcesses, worker: str, held: int = 0) -> EngineProcess:
        launch = Launch((sys.executable, "-c", HOLD.format(held)), {}, "/", b"")
        process = asyncio.run(processes.start(worker, launch, port=1, token="", devices=""))
        started.append((processes, process))
        eventually(lambda: "held" in Path(process.log).read_text(), 30, "its memory")
        assert processes.poll(process) is None
        return process

    yield begin
    for processes, process in started:
        asyncio.run(processes.stop(process, grace=0))


def killed(processes: LocalProcesses, process: EngineProcess) -> Exit:
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: processes.poll(process), 30, "the end of the process")
    ended = processes.poll(process)
    assert ended is not None
    assert processes.poll(process) == ended, "the same whenever it is asked"
    return ended


def test_what_the_kernel_killed_is_told_with_its_memory(tmp_path: Path, counter: Path, start: Start) -> None:
    processes = LocalProcesses(tmp_path / "logs", "127.0.0.1")
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # a child begins with it
    held = ours + 100 * MIB
    first, second = start(processes, "a.1.0", held), start(processes, "b.1.0")
    counter.write_text("oom_kill 6\n")
    ended = killed(processes, first)
    assert ended.code == -signal.SIGKILL
    assert ended.out_of_memory is not None
    assert held < ended.out_of_memory.peak < held + 100 * MIB
    assert ended.out_of_memory.limit == 200 * MIB
    assert killed(processes, second).out_of_memory is None, "one kill explains one end"


def test_a_kill_from_before_the_start_is_not_meant(tmp_path: Path, counter: Path, start: Start) -> None:
    processes = LocalProcesses(tmp_path / "logs", "127.0.0.1")
    counter.write_text("oom_kill 6\n")
    assert killed(processes, start(processes, "a.1.0")) == Exit(-signal.SIGKILL, "held")


def test_it_is_told_of_a_process_that_an_earlier_server_started(tmp_path: Path, counter: Path, start: Start) -> None:
    earlier, processes = (LocalProcesses(tmp_path / "logs", "127.0.0.1") for _ in range(2))
    process = start(earlier, "a.1.0")
    assert processes.adopt(process)
    counter.write_text("oom_kill 6\n")
    ended = killed(processes, process)
    assert (ended.code, ended.out_of_memory is not None) == (None, True)
