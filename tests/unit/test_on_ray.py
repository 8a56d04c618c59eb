"""Engine processes on a cluster, as the server sees them; the cluster is one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from tests.unit.clusters import FakeActor, FakeCluster

from byzerllm.engines.base import Launch
from byzerllm.errors import CapacityExceeded, DeploymentFailed, InvalidInput, NotFound
from byzerllm.runtime import on_ray
from byzerllm.runtime.base import EngineProcess, Exit, Need
from byzerllm.runtime.holder import Place
from byzerllm.runtime.on_ray import RayRuntime
from byzerllm.runtime.placement import ActorGone, Node
from byzerllm.spec import DeploymentSpec

NEED = Need(0.5, 1, {"zephyr": 1})
NODE = Node("n1", "10.0.0.2", total={"CPU": 2, "GPU": 1, "zephyr": 1}, free={"CPU": 2, "GPU": 1, "zephyr": 1})
FULL = Node("n1", "10.0.0.2", total=NODE.total, free={"CPU": 2})
LAUNCH = Launch(argv=("engine",), env={}, ready_path="/", ready_body=b"")


class Holder:
    """What a holder's methods do in these tests. It has a place when it is given one."""

    def __init__(self) -> None:
        self.placed = asyncio.Event()
        self.ended = asyncio.Event()
        self.alive = True

    def methods(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        return {
            "place": self.place,
            "start": self.start,
            "wait": self.wait,
            "stop": self.stop,
            "holds": self.holds,
            "read_log": self.read,
        }

    async def place(self) -> Place:
        await self.placed.wait()
        return Place("10.0.0.2", 20001, ("3",), "n1")

    async def start(self, launch: Launch, port: int, token: str) -> EngineProcess:
        assert launch is LAUNCH
        return process("m.1.0", port=port, token=token)

    async def wait(self) -> Exit:
        await self.ended.wait()
        return Exit(7, "last words")

    async def stop(self, pid: int, started: float, grace: float) -> bool:
        return self.alive

    async def holds(self, pid: int, started: float) -> bool:
        return self.alive

    async def read(self, position: tuple[int, int] | None, tail: int) -> tuple[bytes, tuple[int, int]]:
        return (b"first\n", (1, 6)) if position is None else (b"more\n", (1, 11))


def process(worker: str, port: int = 1, token: str = "t") -> EngineProcess:
    return EngineProcess(
        worker_id=worker, pid=9, started=1.0, host="10.0.0.2", port=port, token=token, log="l", node="n1"
    )


class World:
    def __init__(self, *nodes: Node) -> None:
        self.holder = Holder()
        self.cluster = FakeCluster(self.holder.methods(), nodes or [NODE])
        self.runtime = RayRuntime(cast("Any", self.cluster), "/logs", now=lambda: 0.0)
        self.told: list[str] = []

    def start(self, worker: str = "m.1.0", need: Need = NEED) -> asyncio.Task[EngineProcess]:
        def command(host: str, port: int) -> Launch:
            self.told.append(f"{host}:{port}")
            return LAUNCH

        return asyncio.ensure_future(self.runtime.start(worker, need, command, token="t", waiting=self.told.append))

    async def running(self) -> EngineProcess:
        self.holder.placed.set()
        return await self.start()

    def actor(self, worker: str = "m.1.0") -> FakeActor:
        return self.cluster.actors[f"engine:{worker}"]


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(cast("Any", work()))


def test_a_worker_is_placed_with_what_it_takes_and_started_there() -> None:
    async def work() -> None:
        world = World()
        started = await world.running()
        created = world.cluster.created[0]
        assert (created["cpus"], created["gpus"], created["resources"]) == (0.5, 1, {"zephyr": 1})
        assert created["args"] == ("m.1.0", "/logs", 0.5)
        assert not created.get("restarts"), "an engine lives and dies with its holder"
        assert world.told[-1] == "10.0.0.2:20001"
        assert world.runtime.poll(started) is None

    run(work)


def test_while_there_is_no_place_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "FIRST_LOOK", 0.0)
    monkeypatch.setattr(on_ray, "NEXT_LOOK", 0.0)

    async def work() -> None:
        world = World(FULL)
        starting = world.start()
        while not world.told:
            await asyncio.sleep(0)
        assert world.told[0].startswith("waiting for a place: asked 1 GPU per worker")
        world.holder.placed.set()
        await starting
        assert world.told[-2:] == ["", "10.0.0.2:20001"]

    run(work)


def test_it_names_the_instance_that_holds_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "FIRST_LOOK", 0.0)

    async def work() -> None:
        world = World(FULL)
        await world.running()
        world.told.clear()
        world.holder.placed.clear()
        starting = world.start("other.1.0")
        while not world.told:
            await asyncio.sleep(0)
        assert "0 of 1 free, held by m;" in world.told[0]
        starting.cancel()

    run(work)


def test_a_worker_that_is_starting_in_its_place_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "FIRST_LOOK", 0.0)

    async def work() -> None:
        world = World(FULL)
        world.cluster.in_queue = 1
        first = world.start("m.1.0")
        while "engine:m.1.0" not in world.cluster.actors:
            await asyncio.sleep(0)
        second = world.start("m.1.1")
        while not any("0 of 1 free, held by m;" in why for why in world.told):  # the first one may be told before
            await asyncio.sleep(0)
        world.cluster.in_queue = 0
        while world.told[-1]:
            await asyncio.sleep(0)
        first.cancel()
        second.cancel()

    run(work)


def test_giving_up_while_it_waits_leaves_nothing() -> None:
    async def work() -> None:
        world = World(FULL)
        starting = world.start()
        while not world.cluster.actors:
            await asyncio.sleep(0)
        actor = world.actor()
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert actor.killed
        assert world.cluster.actors == {}

    run(work)


def test_giving_up_while_it_is_created_leaves_nothing() -> None:
    async def work() -> None:
        world = World()
        starting = world.start()
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert world.cluster.actors == {}

    run(work)


def test_a_holder_that_dies_before_it_has_a_place_is_a_failure() -> None:
    async def work() -> None:
        world = World()
        starting = world.start()
        while not world.cluster.actors or not world.actor().calls:
            await asyncio.sleep(0)
        world.actor().die(ActorGone("its node was lost"))
        with pytest.raises(DeploymentFailed, match=r"m\.1\.0 could not be placed: its node was lost"):
            await starting

    run(work)


def test_a_holder_that_an_earlier_server_left_makes_way() -> None:
    async def work() -> None:
        world = World()
        left = world.cluster.add("engine:m.1.0", {})
        await world.running()
        assert left.killed
        assert not world.actor().killed

    run(work)


def test_the_end_of_the_engine_is_seen() -> None:
    async def work() -> None:
        world = World()
        started = await world.running()
        world.holder.ended.set()
        while world.runtime.poll(started) is None:
            await asyncio.sleep(0)
        assert world.runtime.poll(started) == Exit(7, "last words")

    run(work)


def test_the_loss_of_its_node_is_seen() -> None:
    async def work() -> None:
        world = World()
        started = await world.running()
        await asyncio.sleep(0)
        world.actor().die(ActorGone("its node was lost"))
        while world.runtime.poll(started) is None:
            await asyncio.sleep(0)
        assert world.runtime.poll(started) == Exit(None, "", lost="its node was lost")

    run(work)


def test_stop_ends_engine_and_holder_and_can_be_repeated() -> None:
    async def work() -> None:
        world = World()
        started = await world.running()
        actor = world.actor()
        for _ in range(2):
            await world.runtime.stop(started, grace=3)
        assert ("stop", 9, 1.0, 3) in actor.calls
        assert actor.killed
        assert world.runtime.poll(started) is not None

    run(work)


def test_the_process_of_an_earlier_server_is_stopped() -> None:
    async def work() -> None:
        world = World()
        left = world.cluster.add("engine:m.1.0", world.holder.methods())
        world.holder.alive = False
        await world.runtime.stop(process("m.1.0"), grace=0)
        assert not left.killed, "it holds another"
        world.holder.alive = True
        await world.runtime.stop(process("m.1.0"), grace=0)
        assert left.killed

    run(work)


def test_a_process_is_taken_back_while_its_holder_has_it() -> None:
    async def work() -> None:
        world = World()
        assert not await world.runtime.adopt(process("m.1.0"), NEED), "there is no holder"
        world.cluster.add("engine:m.1.0", world.holder.methods())
        world.holder.alive = False
        assert not await world.runtime.adopt(process("m.1.0"), NEED), "it holds another"
        world.holder.alive = True
        assert await world.runtime.adopt(process("m.1.0"), NEED)
        assert world.runtime.poll(process("m.1.0")) is None

    run(work)


def test_what_cannot_be_is_refused_unless_the_caller_is_patient() -> None:
    async def work() -> None:
        world = World()
        asks = DeploymentSpec(name="m", pretrained_model_type="custom/auto", gpus_per_worker=4)
        with pytest.raises(CapacityExceeded):
            await world.runtime.admit(asks, [], patient=False)
        await world.runtime.admit(asks, [], patient=True)
        with pytest.raises(InvalidInput):
            await world.runtime.admit(
                DeploymentSpec(name="m", pretrained_model_type="custom/auto", gpus_per_worker=1.5), [], patient=True
            )
        await world.runtime.admit(
            DeploymentSpec(name="m", pretrained_model_type="saas/x", cpus_per_worker=9), [], patient=False
        )

    run(work)


def test_saas_cpus_are_held_and_freed() -> None:
    world = World()
    spec = DeploymentSpec(name="s", pretrained_model_type="saas/x", cpus_per_worker=0.5, num_workers=6)
    world.runtime.reserve(spec, 6)
    world.runtime.close()
    assert world.cluster.reserved == {"s": [2.0, 1.0]}
    world = World()
    world.runtime.reserve(spec, 6)
    world.runtime.reserve(spec, 0)
    world.runtime.close()
    assert world.cluster.reserved == {}


def test_cpus_that_are_not_free_are_asked_for_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.cluster.has_cpus = False
    world.runtime.reserve(DeploymentSpec(name="s", pretrained_model_type="saas/x", cpus_per_worker=0.5), 1)
    world.runtime.close()
    assert world.cluster.reserved == {"s": [0.5]}
    assert "no 0.5 CPUs free: those of s are counted once they are" in caplog.text


def test_what_a_saas_instance_holds_is_told_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "FIRST_LOOK", 0.0)

    async def work() -> None:
        world = World(Node("n1", "h", total={"CPU": 2}, free={"CPU": 0}))
        world.runtime.reserve(DeploymentSpec(name="s", pretrained_model_type="saas/x", cpus_per_worker=2), 1)
        world.runtime.close()
        starting = world.start(need=Need(cpus=1))
        while not world.told:
            await asyncio.sleep(0)
        assert world.told[0].endswith("asked 1 CPU per worker, the cluster has 0 of 2 free, held by s")
        starting.cancel()

    asyncio.run(work())


def test_what_belongs_to_nobody_is_swept_away() -> None:
    async def work() -> None:
        world = World()
        for name in ("engine:m.1.0", "engine:lost.1.0", "byzerllm", "somebody"):
            world.cluster.add(name, {})
        world.cluster.reserve("kept", [1])
        world.cluster.reserve("gone", [1])
        await world.runtime.sweep(["kept"], ["m.1.0"])
        assert set(world.cluster.actors) == {"engine:m.1.0", "byzerllm", "somebody"}
        assert set(world.cluster.reserved) == {"kept"}

    run(work)


def test_room_is_known_a_moment_later() -> None:
    async def work() -> None:
        world = World()
        assert not world.runtime.has_room(NEED), "nobody has looked yet"
        while not world.runtime.has_room(NEED):
            await asyncio.sleep(0)
        assert not world.runtime.has_room(Need(gpus=2))

    run(work)


def test_logs_come_from_where_the_worker_runs() -> None:
    async def work() -> None:
        world = World()
        with pytest.raises(NotFound, match="runs on no node now"):
            await anext(aiter(world.runtime.logs("m.1.0", tail=5, follow=False)))
        await world.running()
        assert [text async for text in world.runtime.logs("m.1.0", tail=5, follow=False)] == [b"first\n"]
        followed = world.runtime.logs("m.1.0", tail=5, follow=True)
        assert [await anext(followed), await anext(followed)] == [b"first\n", b"more\n"]

    run(work)
