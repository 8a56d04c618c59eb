"""What fits into memory and what does not, and what is said of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from byzerllm.control.memory import MemoryCheck, held, needed, refusal, shortage
from byzerllm.engines.base import Memory
from byzerllm.runtime.base import Room
from byzerllm.runtime.memory import of_workers, parse_devices
from byzerllm.spec import DeploymentSpec

if TYPE_CHECKING:
    from byzerllm.runtime.base import Runtime

GIB = 1024**3
MODEL = Memory(weights=8 * GIB, cache=2 * GIB, on_gpu=False)
ON_GPU = Memory(weights=30 * GIB, cache=2 * GIB, on_gpu=True, shares=2)


class Machine:
    """Of the runtime, the memory that it says is free."""

    def __init__(self, free: float | None) -> None:
        self.free = free
        self.asked = 0

    async def memory(self, spec: DeploymentSpec, workers: int, *, on_gpu: bool) -> Room | None:
        self.asked = workers
        return None if self.free is None else Room(int(self.free * GIB), 32 * GIB)


def look(check: MemoryCheck, name: str, workers: int = 1, memory: Memory = MODEL) -> str:
    return asyncio.run(check.look(DeploymentSpec(name=name), memory, workers))


def checking(free: float | None, loading: set[str]) -> tuple[MemoryCheck, Machine]:
    machine = Machine(free)
    return MemoryCheck(cast("Runtime", machine), loading.__contains__), machine


def test_every_worker_needs_its_own_but_for_weights_that_are_mapped() -> None:
    assert needed(MODEL, 3) == 30 * GIB
    assert needed(Memory(8 * GIB, 2 * GIB, on_gpu=False, mapped=True), 3) == 14 * GIB


def test_what_fits_is_not_spoken_of() -> None:
    assert shortage("m", MODEL, 2, Room(20 * GIB, 32 * GIB)) == ""
    assert shortage("m", MODEL, 2, Room(int(19.1 * GIB), 32 * GIB)) == "", "neither number is exact"
    assert shortage("m", ON_GPU, 4, Room(16 * GIB, 24 * GIB)) == ""


def test_what_does_not_fit_is_told_with_the_numbers() -> None:
    held = ("python (process 7) 12.5 GiB",)
    assert shortage("m", MODEL, 2, Room(12 * GIB, 32 * GIB, held)) == (
        "m needs 20.0 GiB of memory (each of 2 workers: 8.0 GiB of weights and 2.0 GiB for the context), but 12.0 GiB "
        "of 32.0 GiB are free, much is held by python (process 7) 12.5 GiB."
    )
    assert shortage("m", ON_GPU, 1, Room(9 * GIB, 24 * GIB)) == (
        "m needs 16.0 GiB of each GPU's memory (30.0 GiB of weights and 2.0 GiB for the context, shared by 2 GPUs), "
        "but 9.0 GiB of 24.0 GiB are free."
    )
    assert "5.0 MiB of weights" in shortage("m", Memory(5 << 20, GIB, on_gpu=False), 1, Room(0, GIB))
    assert "--no_verify" in str(refusal("m does not fit."))


def test_what_another_instance_is_about_to_take_is_not_free() -> None:
    loading = {"a"}
    check, machine = checking(24, loading)
    assert look(check, "a") == ""
    machine.free = 20  # it has some of its weights by now: 14 GiB will be left
    assert look(check, "b", 2).endswith("but 14.0 GiB of 32.0 GiB are free. a is still being loaded.")
    loading.clear()
    assert look(check, "b", 2) == ""


def test_an_instance_that_is_tried_again_does_not_stand_in_its_own_way() -> None:
    check, _ = checking(12, {"a"})
    assert look(check, "a") == ""
    assert look(check, "a") == ""


def test_what_older_workers_leave_is_told_and_is_free_for_who_comes_next() -> None:
    check, machine = checking(12, {"a"})
    why = asyncio.run(check.look(DeploymentSpec(name="a"), MODEL, 4, leaving=4 * GIB))
    assert "a needs 40.0 GiB" in why
    assert "but 12.0 GiB of 32.0 GiB are free and its older workers leave 4.0 GiB." in why
    machine.free = 40
    assert asyncio.run(check.look(DeploymentSpec(name="a"), MODEL, 4, leaving=10 * GIB)) == ""
    assert "10.0 GiB of 32.0 GiB are free" in look(check, "b", 2)


def test_of_gpus_all_its_workers_are_asked_for_since_its_own_count_as_free() -> None:
    check, machine = checking(16, set())
    assert asyncio.run(check.look(DeploymentSpec(name="a", num_workers=3), ON_GPU, 1)) == ""
    assert machine.asked == 3


def test_what_workers_give_back() -> None:
    assert held(MODEL, 3) == 30 * GIB
    assert held(Memory(8 * GIB, 2 * GIB, on_gpu=False, mapped=True), 3) == 6 * GIB, "the weights were free already"
    assert held(ON_GPU, 3) == 0


def test_where_nothing_is_known_nothing_is_refused() -> None:
    check, _ = checking(None, set())
    assert look(check, "a", 100) == ""
    assert look(check, "a", 100, ON_GPU) == ""


# GPUs

GPUS = [["0", "GPU-a", "1024", "24576"], ["1", "GPU-b", "20480", "24576"], ["2", "GPU-c", "[N/A]", "[N/A]"]]
APPS = [["GPU-a", "77", "/usr/bin/python3", "22528"], ["GPU-a", "78", "small", "16"], ["GPU-b", "[N/A]", "x", "[N/A]"]]


def test_gpus_are_read_with_those_who_hold_their_memory() -> None:
    first, second = parse_devices(GPUS, APPS)
    assert (first.index, first.uuid, first.room) == (
        "0",
        "GPU-a",
        Room(GIB, 24 * GIB, ("python3 (process 77) 22.0 GiB",)),
    )
    assert second.room == Room(20 * GIB, 24 * GIB)


@pytest.mark.parametrize(
    ("gpus", "workers", "free"),
    [(1, 1, 20), (1, 2, 16), (1, 3, 4), (2, 1, 16), (0.5, 1, 12), (0.5, 2, 12), (0.5, 4, 12), (0.5, 6, 4), (4, 1, 4)],
)
def test_workers_get_the_emptiest_gpus_and_the_worst_of_these_counts(gpus: float, workers: int, free: int) -> None:
    rooms = [Room(n * GIB, 24 * GIB) for n in (4, 20, 16)]
    found = of_workers(rooms, gpus, workers)
    assert found is not None
    assert found.free == free * GIB
    assert of_workers([], gpus, workers) is None
