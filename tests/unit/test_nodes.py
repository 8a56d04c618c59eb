"""Which nodes of a cluster can take workers of an instance, and the memory that is told of them."""

from __future__ import annotations

from collections.abc import Mapping

from byzerllm.runtime.base import EngineProcess, Need, Room
from byzerllm.runtime.memory import Device
from byzerllm.runtime.nodes import Opening, Running, openings
from byzerllm.runtime.placement import Node
from byzerllm.spec import DeploymentSpec

ROOM = Room(40, 64)
DEVICES = [Device(str(number), f"GPU-{number}", Room(20 + number, 24)) for number in range(3)]


def node(name: str, free: Mapping[str, float], total: Mapping[str, float] | None = None) -> Node:
    return Node(name, f"host of {name}", total={"CPU": 4, "GPU": 3} if total is None else total, free=free)


def running(worker: str, where: str, need: Need, *gpus: str) -> Running:
    process = EngineProcess(
        worker_id=worker, pid=1, started=1.0, host="h", port=1, token="t", log="l", gpus=gpus, node=where
    )
    return Running(process, need)


def spec(workers: int = 2, **needs: float) -> DeploymentSpec:
    return DeploymentSpec(name="m", num_workers=workers, **needs)  # type: ignore[arg-type]


def places(found: list[Opening]) -> dict[str, int]:
    return {opening.node.id: opening.places for opening in found}


def test_a_node_takes_as_many_as_its_scarcest_resource_is_enough_for() -> None:
    nodes = [node("a", {"CPU": 4, "GPU": 1}), node("b", {"CPU": 1, "GPU": 3}), node("c", {"CPU": 4})]
    assert places(openings(spec(cpus_per_worker=0.5, gpus_per_worker=1), nodes, [])) == {"a": 1, "b": 2}
    assert places(openings(spec(9, cpus_per_worker=0.1), nodes, [])) == {"a": 9, "b": 9, "c": 9}, "no more than wanted"
    assert places(openings(spec(cpus_per_worker=0), nodes, [])) == {"a": 2, "b": 2, "c": 2}


def test_what_its_own_workers_have_counts_as_free() -> None:
    nodes = [node("a", {"CPU": 4, "GPU": 0}), node("b", {"CPU": 4, "GPU": 1})]
    workers = [running("m.1.0", "a", Need(gpus=1), "0"), running("other.1.0", "a", Need(gpus=2), "1", "2")]
    first, second = openings(spec(gpus_per_worker=1), nodes, workers)
    assert (first.node.id, first.places, len(first.own), first.now) == ("a", 1, 1, True)
    assert (second.node.id, second.places, len(second.own)) == ("b", 1, 0)
    site = first.site(ROOM, DEVICES, on_gpu=True)
    assert (site.room, site.places, site.own, site.node, site.host) == (ROOM, 1, 1, "a", "host of a")


def test_a_worker_on_a_node_that_was_lost_is_nowhere() -> None:
    nodes = [node("b", {"CPU": 4})]
    (only,) = openings(spec(), nodes, [running("m.1.0", "gone", Need())])
    assert not only.own


def test_where_nothing_has_a_place_it_is_told_what_there_will_be_once_all_have_left() -> None:
    nodes = [node("a", {"CPU": 4, "GPU": 0}), node("b", {"CPU": 4}, total={"CPU": 4})]
    (only,) = openings(spec(5, gpus_per_worker=1), nodes, [running("other.1.0", "a", Need(gpus=3), "0", "1", "2")])
    assert (only.node.id, only.places, only.now) == ("a", 3, False)
    site = only.site(ROOM, DEVICES, on_gpu=True)
    assert (site.room, site.node, site.host) == (Room(64, 64), "", "host of a")
    assert site.gpus == (Room(24, 24),) * 3
    silent = only.site(None, (), on_gpu=True)
    assert (silent.room, silent.gpus, silent.places) == (None, None, 3)
    assert openings(spec(gpus_per_worker=4), nodes, []) == [], "it can never be"


def test_the_gpus_are_those_that_no_other_instance_has_whole() -> None:
    workers = [
        running("m.1.0", "a", Need(gpus=1), "GPU-0"),
        running("part.1.0", "a", Need(gpus=0.5), "1"),
        running("whole.1.0", "a", Need(gpus=1), "2"),
    ]
    (found,) = openings(spec(gpus_per_worker=1), [node("a", {"CPU": 4, "GPU": 0.5})], workers)
    assert found.site(ROOM, DEVICES, on_gpu=True).gpus == (Room(24, 24), Room(21, 24))
    assert found.site(ROOM, [], on_gpu=False).gpus == ()


def test_gpus_of_which_the_driver_does_not_tell_are_not_known() -> None:
    (found,) = openings(spec(gpus_per_worker=1), [node("a", {"CPU": 4, "GPU": 3})], [])
    assert found.site(ROOM, DEVICES[:2], on_gpu=True).gpus is None
