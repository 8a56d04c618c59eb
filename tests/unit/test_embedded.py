"""The memory of this machine as a new instance's workers find it; what runs here is only entered in the books."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from byzerllm.runtime import capacity, memory
from byzerllm.runtime.base import EngineProcess, Need, Room, Site
from byzerllm.runtime.embedded import EmbeddedRuntime
from byzerllm.runtime.local import LocalProcesses
from byzerllm.runtime.memory import Device
from byzerllm.spec import DeploymentSpec

if TYPE_CHECKING:
    from pathlib import Path

ROOM = Room(40, 64)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> EmbeddedRuntime:
    """Of four GPUs the driver tells of three, by number and by name."""
    devices = [Device(str(number), f"GPU-{number}", Room(20 + number, 24)) for number in range(3)]
    monkeypatch.setattr(capacity, "visible_gpus", lambda: ("0", "GPU-1", "2", "3"))
    monkeypatch.setattr(memory, "measure", lambda on_gpu: (ROOM, devices if on_gpu else []))
    monkeypatch.setattr(LocalProcesses, "adopt", lambda self, process: True)
    return EmbeddedRuntime(tmp_path)


def hold(runtime: EmbeddedRuntime, worker: str, *gpus: int) -> None:
    process = EngineProcess(worker_id=worker, pid=1, started=1.0, host="h", port=1, token="t", log="l", gpus=gpus)
    asyncio.run(runtime.adopt(process, Need(gpus=len(gpus))))


def site(runtime: EmbeddedRuntime, gpus: float = 0) -> Site:
    (only,) = asyncio.run(
        runtime.memory(DeploymentSpec(name="m", num_workers=2, gpus_per_worker=gpus), on_gpu=gpus > 0)
    )
    return only


def test_its_own_workers_are_counted(runtime: EmbeddedRuntime) -> None:
    for worker in ("m.1.0", "m.2.0", "m.2.1", "other.1.0"):
        hold(runtime, worker)
    assert site(runtime) == Site(ROOM, places=5, own=3, node="embedded")


def test_the_gpus_are_those_that_no_other_instance_has(runtime: EmbeddedRuntime) -> None:
    hold(runtime, "other.1.0", 2, 3)
    hold(runtime, "m.1.0", 1)
    assert site(runtime, gpus=1).gpus == (Room(20, 24), Room(24, 24))


def test_gpus_of_which_the_driver_does_not_tell_are_not_known(runtime: EmbeddedRuntime) -> None:
    assert site(runtime, gpus=1).gpus is None
