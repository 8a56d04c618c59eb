"""What fits into memory and what does not, and what is said of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from byzerllm.control.memory import MemoryCheck, held, needed, refusal, worst_gpus
from byzerllm.engines.base import Memory
from byzerllm.runtime.base import Room, Site
from byzerllm.runtime.memory import parse_devices
from byzerllm.spec import DeploymentSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from byzerllm.runtime.base import Runtime

GIB = 1024**3
MODEL = Memory(weights=8 * GIB, cache=2 * GIB, on_gpu=False)
ON_GPU = Memory(weights=30 * GIB, cache=2 * GIB, on_gpu=True, shares=2)


class World:
    """Of a runtime, the machines that it tells of and those that it is told to prefer."""

    def __init__(self, *sites: Site) -> None:
        self.sites = list(sites)
        self.preferred: dict[str, list[str]] = {}

    async def memory(self, spec: DeploymentSpec, *, on_gpu: bool) -> list[Site]:
        return self.sites

    def prefer(self, instance: str, nodes: Sequence[str]) -> None:
        self.preferred[instance] = list(nodes)


def machine(free: float, *, own: int = 0, gpus: Sequence[float] | None = (), holders: tuple[str, ...] = ()) -> Site:
    """The only one, of 32 GiB, and its GPUs, of 24 GiB."""
    rooms = None if gpus is None else tuple(Room(int(gpu * GIB), 24 * GIB) for gpu in gpus)
    return Site(Room(int(free * GIB), 32 * GIB, holders), 100, own, rooms, "here")


def node(name: str, free: float, places: int = 100, own: int = 0, gpus: Sequence[float] | None = ()) -> Site:
    """One of a cluster."""
    site = machine(free, own=own, gpus=gpus)
    return Site(site.room, places, own, site.gpus, name, f"host of {name}")


def look(
    check: MemoryCheck,
    name: str,
    workers: int = 1,
    memory: Memory = MODEL,
    old: Memory | None = None,
    gpus: float = 0,
    running: int = 0,
    *,
    binding: bool = True,
) -> str:
    spec = DeploymentSpec(name=name, num_workers=workers if old else running + workers, gpus_per_worker=gpus)
    return asyncio.run(check.look(spec, memory, workers, old, binding=binding))


def checking(*sites: Site, loading: Collection[str] = ()) -> tuple[MemoryCheck, World]:
    world = World(*sites)
    return MemoryCheck(cast("Runtime", world), loading.__contains__), world


def told(*sites: Site, workers: int = 1, memory: Memory = MODEL, old: Memory | None = None, gpus: float = 0) -> str:
    """What is said of the instance ``m`` where nothing else is loading."""
    return look(checking(*sites)[0], "m", workers, memory, old, gpus)


def test_every_worker_needs_its_own_but_for_weights_that_are_mapped() -> None:
    assert needed(MODEL, 3) == 30 * GIB
    assert needed(Memory(8 * GIB, 2 * GIB, on_gpu=False, mapped=True), 3) == 14 * GIB


def test_what_fits_is_not_spoken_of() -> None:
    assert told(machine(20), workers=2) == ""
    assert told(machine(19.1), workers=2) == "", "neither number is exact"
    assert told(machine(0, gpus=[16] * 8), workers=4, memory=ON_GPU, gpus=2) == ""


def test_what_does_not_fit_is_told_with_the_numbers() -> None:
    assert told(machine(12, holders=("python (process 7) 12.5 GiB",)), workers=2) == (
        "m needs 20.0 GiB of memory (each of 2 workers: 8.0 GiB of weights and 2.0 GiB for the context), but 12.0 GiB "
        "of 32.0 GiB are free, much is held by python (process 7) 12.5 GiB."
    )
    assert told(machine(64, gpus=[16, 9]), memory=ON_GPU, gpus=2) == (
        "m needs 16.0 GiB of each GPU's memory (30.0 GiB of weights and 2.0 GiB for the context, shared by 2 GPUs), "
        "but 9.0 GiB of 24.0 GiB are free."
    )
    assert "5.0 MiB of weights" in told(machine(0), memory=Memory(5 << 20, GIB, on_gpu=False))
    assert "--no_verify" in str(refusal("m does not fit.").hint)


def test_where_nothing_is_known_nothing_is_refused() -> None:
    assert told(workers=100) == ""
    assert told(machine(64, gpus=None), memory=ON_GPU, gpus=2) == ""


# What is still being loaded


def test_what_another_instance_is_about_to_take_is_not_free() -> None:
    loading = {"a"}
    check, world = checking(machine(24), loading=loading)
    assert look(check, "a") == ""
    world.sites = [machine(20)]  # it has some of its weights by now: 14 GiB will be left
    assert look(check, "b", 2).endswith("but 14.0 GiB of 32.0 GiB are free. a is still being loaded.")
    loading.clear()
    assert look(check, "b", 2) == ""


def test_an_instance_that_is_tried_again_does_not_stand_in_its_own_way() -> None:
    loading = {"a"}
    check, _ = checking(machine(12), loading=loading)
    assert look(check, "a") == ""
    loading.clear()  # it failed
    assert look(check, "a") == ""


def test_what_it_is_still_loading_itself_is_not_free_for_more_of_its_workers() -> None:
    check, _ = checking(machine(24), loading={"a"})
    assert look(check, "a") == ""
    assert look(check, "a", running=1) == ""
    assert "but 4.0 GiB of 32.0 GiB are free" in look(check, "a", running=2)


def test_older_workers_that_are_still_loading_leave_no_more_than_they_will_have() -> None:
    check, world = checking(machine(24), loading={"a"})
    assert look(check, "a") == ""
    world.sites = [machine(24, own=1)]
    assert "14.0 GiB of 32.0 GiB are free and its older workers leave 10.0 GiB" in look(check, "a", 3, old=MODEL)
    assert look(check, "a", 2, old=MODEL) == ""


def test_what_is_refused_is_promised_nothing() -> None:
    check, world = checking(node("a", 24), loading={"a"})
    assert look(check, "a") == ""
    assert look(check, "a", 9, running=1)
    assert world.preferred == {"a": ["a"]}
    assert look(check, "b") == "", "14 GiB are left"


def test_who_was_loaded_once_does_not_count_when_it_is_worked_on_again() -> None:
    loading = {"a"}
    check, _ = checking(machine(24), loading=loading)
    assert look(check, "a", 2) == ""
    loading.clear()
    check.forget_loaded()
    loading.add("a")  # it is being removed, long after
    assert look(check, "b", 2) == ""


def test_who_is_loaded_without_the_check_leaves_nothing_to_others() -> None:
    check, _ = checking(machine(12), loading={"a"})
    assert look(check, "a", 2, binding=False)
    assert look(check, "b").endswith("but 0.0 MiB of 32.0 GiB are free. a is still being loaded.")
    assert look(check, "c", memory=ON_GPU, gpus=2) == "", "it needs nothing of that memory"


# Older workers


def test_what_older_workers_leave_is_told_and_is_free_for_who_comes_next() -> None:
    small = Memory(weights=3 * GIB, cache=GIB, on_gpu=False)
    check, world = checking(machine(12, own=1), loading={"a"})
    why = look(check, "a", 4, old=small)
    assert "a needs 40.0 GiB" in why
    assert "but 12.0 GiB of 32.0 GiB are free and its older workers leave 4.0 GiB." in why
    world.sites = [machine(40, own=1)]
    assert look(check, "a", 4, old=MODEL) == ""
    assert "10.0 GiB of 32.0 GiB are free" in look(check, "b", 2)


def test_the_first_new_worker_comes_before_an_older_one_leaves() -> None:
    why = told(machine(8, own=3), workers=2, old=MODEL)
    assert why.endswith("8.0 GiB of 32.0 GiB are free. Its older workers hold 30.0 GiB: undeploy it first.")
    assert told(machine(10, own=3), workers=2, old=MODEL) == ""
    held = Site(Room(8 * GIB, 32 * GIB), places=3, own=3, node="n", host="h")
    assert told(held, workers=2, old=MODEL) == "", "it has no place before"


def test_of_gpus_all_its_workers_are_asked_for_since_its_own_count_as_free() -> None:
    check, _ = checking(machine(64, own=2, gpus=[24, 24, 24, 24, 9, 9]))
    assert "9.0 GiB of 24.0 GiB" in look(check, "a", 1, ON_GPU, gpus=2, running=2)
    assert look(check, "a", 1, ON_GPU, gpus=2, running=1) == ""


def test_what_workers_give_back() -> None:
    assert held(MODEL, 3) == 30 * GIB
    assert held(Memory(8 * GIB, 2 * GIB, on_gpu=False, mapped=True), 3) == 6 * GIB, "the weights were free already"
    assert held(ON_GPU, 3) == 0


# The machine's memory that is needed to load a model onto GPUs


def test_a_model_passes_through_the_machines_memory_on_its_way_to_the_gpus() -> None:
    passing = Memory(30 * GIB, 2 * GIB, on_gpu=True, shares=2, host=15 * GIB)
    gpus = [24.0] * 4
    assert told(machine(31, gpus=gpus), workers=2, memory=passing, gpus=2) == ""
    assert told(machine(20, gpus=gpus), workers=2, memory=passing, gpus=2) == (
        "m needs 30.0 GiB of memory (each of 2 workers: 15.0 GiB of weights until they are on its GPUs), but 20.0 GiB "
        "of 32.0 GiB are free."
    )
    assert told(machine(20, own=2, gpus=gpus), workers=2, memory=passing, old=passing, gpus=2) == "", "one by one"


# A cluster


def test_the_best_node_is_named_where_not_even_one_worker_fits() -> None:
    assert told(node("a", 4), node("b", 9), node("c", 64, places=0), workers=2) == (
        "m needs 10.0 GiB of memory (8.0 GiB of weights and 2.0 GiB for the context), but the most that a node has "
        "free is on host of b: 9.0 GiB of 32.0 GiB are free."
    )


def test_for_how_many_there_is_room_is_told_where_not_all_fit() -> None:
    nodes = node("a", 21), node("b", 9), node("c", 15)
    assert told(*nodes, workers=3) == ""
    assert told(*nodes, workers=4) == (
        "m needs 10.0 GiB of memory for each of 4 workers (8.0 GiB of weights and 2.0 GiB for the context), but the "
        "nodes have room for 3 of them: on host of a 21.0 GiB of 32.0 GiB are free."
    )


def test_the_runtime_is_told_where_there_is_room() -> None:
    check, world = checking(node("a", 21), node("b", 9), node("c", 15))
    look(check, "m", 3)
    assert world.preferred == {"m": ["a", "a", "c"]}
    look(check, "m", 1)
    assert world.preferred == {"m": ["a"]}
    look(check, "m", 4, binding=False)
    assert world.preferred == {"m": ["a", "a", "c"]}, "the last one goes anywhere"


def test_the_first_to_be_replaced_comes_where_there_is_room_before() -> None:
    check, world = checking(node("a", 9, own=2), node("b", 11))
    assert look(check, "m", 2, old=MODEL) == ""
    assert world.preferred == {"m": ["b", "a"]}
    check, _ = checking(node("a", 9, own=2), node("b", 8))
    assert "the most that a node has free is on host of a: 9.0 GiB" in look(check, "m", 2, old=MODEL)


def test_who_waits_for_a_place_is_not_refused_for_lack_of_memory() -> None:
    nodes = node("a", 12, places=1), node("b", 64, places=0)
    assert told(*nodes, workers=5) == ""
    assert told(node("a", 9, places=1), workers=5).startswith("m needs 10.0 GiB of memory (")


def test_what_is_being_loaded_on_one_node_is_free_on_another() -> None:
    check, world = checking(node("a", 21), node("b", 12), loading={"x", "y", "z"})
    assert look(check, "x") == ""
    assert look(check, "y") == ""
    assert world.preferred == {"x": ["a"], "y": ["b"]}
    assert look(check, "z") == ""
    assert world.preferred["z"] == ["a"]
    why = look(check, "w")
    assert why.endswith("is on host of b: 2.0 GiB of 32.0 GiB are free. x and y and z are still being loaded.")


def test_a_node_that_must_be_emptied_first_is_not_held_by_who_is_loading_there() -> None:
    full = Site(Room(32 * GIB, 32 * GIB), places=1, host="h")
    check, world = checking(node("a", 12), loading={"x"})
    assert look(check, "x") == ""
    world.sites = [full]
    assert look(check, "m") == ""
    assert world.preferred["m"] == []
    why = look(check, "m", memory=Memory(64 * GIB, 0, on_gpu=False))
    assert why.endswith("but the most that a node has is 32.0 GiB, on h.")


def test_on_a_cluster_the_gpus_of_all_nodes_are_looked_at() -> None:
    nodes = node("a", 64, gpus=[24, 24, 4]), node("b", 64, gpus=[20, 9])
    one = Memory(14 * GIB, 2 * GIB, on_gpu=True)
    assert told(*nodes, workers=3, memory=one, gpus=1) == ""
    assert told(*nodes, workers=4, memory=one, gpus=1) == (
        "m needs 16.0 GiB of a GPU's memory for each of 4 workers (14.0 GiB of weights and 2.0 GiB for the context), "
        "but the nodes have room for 3 of them: on host of a 24.0 GiB of 24.0 GiB are free."
    )
    large = Memory(30 * GIB, 2 * GIB, on_gpu=True)
    assert "the most that a node has is 24.0 GiB, on host of a." in told(*nodes, memory=large, gpus=1)
    assert told(node("a", 64, gpus=[24, 4], places=1), workers=2, memory=one, gpus=1) == "", "the second one waits"


def test_a_node_is_preferred_only_for_workers_that_fit_on_its_gpus() -> None:
    check, world = checking(node("a", 64, gpus=[9, 9]), node("b", 20, gpus=[24, 24]))
    assert look(check, "m", 2, Memory(14 * GIB, 2 * GIB, on_gpu=True), gpus=1) == ""
    assert world.preferred == {"m": ["b", "b"]}


# A node of a cluster that does not answer


def silent(name: str, places: int = 100, own: int = 0) -> Site:
    return Site(None, places, own, None, name, f"host of {name}")


def test_a_node_that_does_not_tell_gets_what_has_no_room_elsewhere() -> None:
    check, world = checking(silent("s"), node("a", 12), silent("t"), node("b", 21), loading={"m"})
    assert look(check, "m", 3) == ""
    assert world.preferred["m"] == ["a", "b", "b"]
    assert look(check, "n", 3) == "", "a and b have no room any more"
    assert world.preferred["n"] == ["s", "s", "t"]
    assert look(check, "o", 2) == "", "nothing is known of s and t, so nothing was promised there"


def test_beside_a_node_that_does_not_tell_the_others_are_checked() -> None:
    assert told(node("a", 21), silent("s", places=1), workers=3) == ""
    assert told(node("a", 21), silent("s", places=1), workers=4) == (
        "m needs 10.0 GiB of memory for each of 4 workers (8.0 GiB of weights and 2.0 GiB for the context), but the "
        "nodes have room for 3 of them: on host of a 21.0 GiB of 32.0 GiB are free."
    )
    assert told(silent("s", places=1), node("a", 0)) == ""
    assert "on host of a: 0.0 MiB of 32.0 GiB" in told(silent("s", places=0), node("a", 0))
    assert told(silent("s", places=1), workers=5) == "", "the others wait for a place"


def test_a_node_that_does_not_tell_can_take_the_first_new_worker_of_an_older_instance() -> None:
    check, world = checking(silent("s", own=1), node("a", 9, own=1))
    assert look(check, "m", 2, old=MODEL) == ""
    assert world.preferred["m"] == ["s", "a"]


def test_gpus_of_which_nothing_is_told_do_not_hide_those_that_are_too_small() -> None:
    one = Memory(14 * GIB, 2 * GIB, on_gpu=True)
    nodes = node("a", 64, gpus=[24, 4]), silent("s", places=1)
    assert told(*nodes, workers=2, memory=one, gpus=1) == ""
    assert "but the nodes have room for 2 of them: on host of a 24.0 GiB" in told(*nodes, workers=3, memory=one, gpus=1)


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
    ("share", "free"),
    [(1, [20, 16, 4]), (2, [16]), (0.5, [12, 12, 12, 12, 4, 4]), (0.4, [9.6, 9.6, 9.6, 9.6, 4, 4]), (4, [])],
)
def test_workers_get_the_emptiest_gpus_and_the_worst_of_these_counts(share: float, free: list[float]) -> None:
    rooms = [Room(n * GIB, 24 * GIB) for n in (4, 20, 16)]
    assert [room.free for room in worst_gpus(rooms, share)] == [int(gib * GIB) for gib in free]
