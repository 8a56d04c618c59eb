"""What is said of a GPU that cannot be used, and how workers take turns on one that they share."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from byzerllm.engines.host import cuda, loading, main
from byzerllm.engines.host import turn as turns
from byzerllm.engines.host.batches import OneThread
from byzerllm.engines.host.runner import Runner
from byzerllm.engines.host.vllm_guard import Guard
from byzerllm.errors import Overloaded

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from byzerllm.engines.host.vllm_guard import Message, Receive, Send

# As torch 2.13 words them.
SAID = {
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver": "driver is too",
    "CUDA driver version is insufficient for CUDA runtime version": "driver is too old",
    "CUDA error: no kernel image is available for execution on the device": "has no code for this GPU",
    "Torch not compiled with CUDA enabled": "built for CPUs",
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU": "sees no GPU",
    "No CUDA GPUs are available": "sees no GPU",
    "CUDA unknown error - this may be due to an incorrectly set up environment": "cannot be initialised",
}


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


class AcceleratorError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(("text", "meaning"), SAID.items())
def test_a_gpu_that_cannot_be_used_is_explained(text: str, meaning: str) -> None:
    assert meaning in str(cuda.meaning(text))
    cause = main.cause_of(RuntimeError(text + "\nCompile with TORCH_USE_CUDA_DSA"), {"model_path": "/m"})
    assert cause.startswith("no GPU can be used: ")
    assert meaning in cause


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to\nallocate 2 GiB."), "out of GPU memory: CUDA out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), "out of GPU memory: CUDA error"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling x"), "the GPU failed: CUDA error: CUB"),
        (AcceleratorError("CUDA error: an illegal memory access\nCompile with"), "the GPU failed: CUDA error: an ill"),
        (AcceleratorError(""), "the GPU failed: AcceleratorError"),
        (ValueError("no such layer"), "None"),
        (RuntimeError("mat1 and mat2 must have the same dtype"), "None"),
    ],
)
def test_errors_of_the_gpu_are_causes(error: Exception, told: str) -> None:
    assert str(cuda.cause(error)).startswith(told)
    assert "Compile with" not in str(cuda.cause(error))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (AcceleratorError("CUDA error: device-side assert triggered"), "the GPU failed: CUDA error: device-side"),
        (KeyError("row"), "the model's thread ended: KeyError: 'row'"),
    ],
)
def test_the_end_of_the_models_thread_has_a_cause(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)

    def work(_runner: Runner) -> None:
        raise error

    Runner(work)._run()
    *trace, last = capsys.readouterr().out.splitlines()
    assert last.startswith(f"byzerllm: cause: {told}")
    assert trace[0].startswith("Traceback")
    assert ended == [1]


def test_other_errors_are_not_about_the_gpu() -> None:
    assert cuda.meaning("CUDA out of memory. Tried to allocate 2.00 GiB.") is None
    assert main.cause_of(ValueError("no such layer"), {"model_path": "/m"}).startswith("/m could not be loaded")


@pytest.mark.parametrize(
    ("places", "left"),
    [({}, 0), ({"": 0}, 0), ({"a": 0, "b": 1}, 0), ({"a": 0, "b": "cpu", "c": "disk"}, 2)],
)
def test_parts_without_a_gpu_are_counted(places: dict[str, object], left: int) -> None:
    assert loading.left_out(places) == left


async def _app(_scope: Message, _receive: Receive, _send: Send) -> None:
    """Answers nothing."""


def test_one_worker_at_a_time_starts_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gpu.lock"
    monkeypatch.setattr(Guard, "turn", turns.Turn(path, waiting=lambda: None))
    monkeypatch.setenv("VLLM_API_KEY", "key")
    other = os.open(path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    Guard(_app)  # vLLM makes it when its engine has taken its memory
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


def test_who_waits_for_another_worker_says_so(tmp_path: Path) -> None:
    told: list[str] = []
    first = turns.Turn(tmp_path / "lock", waiting=lambda: told.append("nobody is there"))

    def waiting() -> None:
        told.append("waiting")
        first.end()

    turns.Turn(tmp_path / "lock", waiting=waiting).end()
    assert told == ["waiting"]


def test_workers_of_one_gpu_meet_in_one_place() -> None:
    assert turns.path_of("0") == turns.path_of("0") != turns.path_of("GPU-8f6e")
    assert "/" not in turns.path_of("MIG-GPU-1/7/0").name.removeprefix("byzerllm")


def test_a_request_that_needs_too_much_gpu_memory_is_refused() -> None:
    def work() -> None:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with pytest.raises(Overloaded, match="out of GPU memory"):
        asyncio.run(OneThread().run(work))


def test_a_broken_gpu_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)

    def work() -> None:
        raise AcceleratorError("CUDA error: device-side assert triggered")

    with pytest.raises(AcceleratorError):  # as the process did not end
        asyncio.run(OneThread().run(work))
    assert ended == [1]


@pytest.mark.parametrize(
    ("gpus", "values", "limits"), [(0.5, {}, [0.475]), (1, {}, []), (0, {}, []), (0.5, {"device": "cpu"}, [])]
)
def test_a_part_of_a_gpu_is_a_limit(
    gpus: float, values: dict[str, str], limits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []
    cuda_of_torch = SimpleNamespace(set_per_process_memory_fraction=found.append)
    monkeypatch.setitem(sys.modules, "torch", cast("ModuleType", SimpleNamespace(cuda=cuda_of_torch)))
    main.keep_to_share({"gpus": gpus, "values": values})
    assert found == pytest.approx(limits)
