"""The memory of a cluster's nodes as the runtime tells it, and the nodes that it has workers prefer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.test_on_ray import FULL, NODE, World, run

from byzerllm.runtime.base import Room
from byzerllm.runtime.memory import Device
from byzerllm.spec import DeploymentSpec

ROOM = Room(40, 64)
GPU = Device("0", "GPU-0", Room(20, 24))


def test_memory_is_measured_on_the_nodes_that_have_a_place() -> None:
    async def work() -> None:
        world = World(NODE, replace(FULL, id="n2"), replace(NODE, id="n3"))
        spec = DeploymentSpec(name="m", gpus_per_worker=1)
        world.cluster.answers = {"n1": (ROOM, [GPU]), "n2": (ROOM, []), "n3": (Room(5, 64), [GPU])}
        sites = await world.runtime.memory(spec, on_gpu=True)
        assert [(site.node, site.room, site.gpus) for site in sites] == [
            ("n1", ROOM, (GPU.room,)),
            ("n3", Room(5, 64), (GPU.room,)),
        ]
        assert world.cluster.ran == [("byzerllm.runtime.memory:measure", True)]
        world.cluster.all_nodes = []
        assert await world.runtime.memory(spec, on_gpu=True) == []

    run(work)


def test_a_node_that_does_not_tell_is_unknown_and_the_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        world = World(NODE, replace(NODE, id="n2", host="10.0.0.9"))
        world.cluster.answers = {"n1": (ROOM, [GPU])}
        told, silent = await world.runtime.memory(DeploymentSpec(name="m", gpus_per_worker=1), on_gpu=True)
        assert (told.node, told.room, told.gpus) == ("n1", ROOM, (GPU.room,))
        assert (silent.node, silent.room, silent.gpus, silent.host) == ("n2", None, None, "10.0.0.9")
        assert silent.places == told.places
        assert "m goes last, and unchecked, to 10.0.0.9: no answer on free memory" in caplog.text

    run(work)


def test_its_own_workers_are_told_of() -> None:
    async def work() -> None:
        world = World(replace(FULL, total={"CPU": 2}))
        world.cluster.answers = {"n1": (ROOM, [])}
        await world.running()
        (site,) = await world.runtime.memory(DeploymentSpec(name="m"), on_gpu=False)
        assert site.own == 1
        (site,) = await world.runtime.memory(DeploymentSpec(name="other"), on_gpu=False)
        assert site.own == 0

    run(work)


def test_workers_go_where_they_are_preferred_and_again_where_they_were() -> None:
    async def work() -> None:
        world = World()
        world.runtime.prefer("m", ["n7", "n8"])
        started = await world.running()
        await world.start("other.1.0")
        await world.start("m.1.1")
        await world.start("m.1.2")
        await world.runtime.stop(started, grace=0)
        await world.start("m.1.0")
        assert [created["preferred"] for created in world.cluster.created] == ["n7", "", "n8", "", "n1"]

    run(work)
