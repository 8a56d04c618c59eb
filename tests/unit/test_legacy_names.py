"""The actors by whose names older clients find instances; the cluster is one in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.clusters import FakeCluster

from byzerllm.errors import Conflict
from byzerllm.gateway.legacy.names import LegacyNames
from byzerllm.runtime.placement import ActorGone


async def until_killed() -> None:
    await asyncio.Event().wait()


class World:
    def __init__(self) -> None:
        self.cluster = FakeCluster({"until_killed": until_killed})
        self.removed: list[str] = []
        self.names = LegacyNames(cast("Any", self.cluster), Path("/home"), "head")
        self.names.watch(self.removed.append)

    async def watched(self, name: str) -> None:
        """Return once the end of its actor would be seen."""
        while not self.cluster.actors[name].calls:
            await asyncio.sleep(0)


def test_an_instance_gets_an_actor_of_its_name_beside_the_server() -> None:
    async def work() -> None:
        world = World()
        await world.names.claim("m")
        await world.names.claim("m")
        (created,) = world.cluster.created
        assert created["args"] == ("m", "/home")
        assert (created["namespace"], created["node"], created["restarts"]) == ("default", "head", True)

    asyncio.run(work())


def test_the_actor_that_an_earlier_server_made_is_kept() -> None:
    async def work() -> None:
        world = World()
        world.cluster.add("m", world.cluster.methods)
        await world.names.claim("m")
        assert world.cluster.created == []
        await world.names.drop("m")
        assert world.cluster.actors == {}

    asyncio.run(work())


def test_somebody_elses_actor_is_left_alone_and_refuses_the_name() -> None:
    async def work() -> None:
        world = World()
        world.cluster.add("m", {})
        with pytest.raises(Conflict, match="has an actor 'm' in the namespace 'default' that is not of byzerllm"):
            await world.names.claim("m")
        await world.names.drop("m")
        await world.names.sweep([])
        assert "m" in world.cluster.actors

    asyncio.run(work())


def test_a_killed_actor_means_that_the_instance_was_undeployed() -> None:
    async def work() -> None:
        world = World()
        await world.names.claim("m")
        await world.watched("m")
        world.cluster.actors["m"].die(ActorGone("it was killed by ray.kill", killed=True))
        while not world.removed:
            await asyncio.sleep(0)
        assert world.removed == ["m"]
        await world.names.claim("m")
        assert len(world.cluster.created) == 2, "it can be deployed anew"

    asyncio.run(work())


def test_an_actor_that_was_lost_leaves_the_instance() -> None:
    async def work() -> None:
        world = World()
        await world.names.claim("m")
        await world.watched("m")
        world.cluster.actors["m"].die(ActorGone("its node was lost"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert world.removed == []

    asyncio.run(work())


def test_a_dropped_name_tells_nobody() -> None:
    async def work() -> None:
        world = World()
        await world.names.claim("m")
        await world.watched("m")
        actor = world.cluster.actors["m"]
        await world.names.drop("m")
        await world.names.drop("m")
        assert actor.killed
        actor.die(ActorGone("it was killed by ray.kill", killed=True))
        for _ in range(10):
            await asyncio.sleep(0)
        assert world.removed == []

    asyncio.run(work())


def test_actors_of_instances_that_are_no_more_are_swept_away() -> None:
    async def work() -> None:
        world = World()
        for name in ("kept", "gone"):
            world.cluster.add(name, world.cluster.methods)
        world.cluster.add("somebody", {})
        await world.names.sweep(["kept"])
        assert set(world.cluster.actors) == {"kept", "somebody"}

    asyncio.run(work())
