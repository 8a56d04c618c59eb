"""What the controller keeps in mind of its instances, where the world around it is made up."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NoReturn
from unittest.mock import AsyncMock, Mock

import pytest

from byzerllm.control import prepare
from byzerllm.control.controller import Controller
from byzerllm.control.engine_worker import EnginePlan
from byzerllm.control.private import PrivateDeployment
from byzerllm.control.state import State
from byzerllm.control.store import SavedDeployment
from byzerllm.engines.base import EngineOptions, Memory
from byzerllm.errors import CapacityExceeded, InvalidInput
from byzerllm.runtime.base import Room, Site
from byzerllm.spec import DeploymentSpec, Timeouts
from byzerllm.wire.base import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

GIB = 1024**3


def spec(name: str) -> DeploymentSpec:
    return DeploymentSpec(name=name, pretrained_model_type="custom/auto", infer_backend="llama_cpp", model_path="/m")


class Machine:
    """A runtime with 24 GiB of memory free."""

    admit, sweep, prefer = AsyncMock(), AsyncMock(), Mock()

    async def memory(self, spec: DeploymentSpec, *, on_gpu: bool) -> list[Site]:
        return [Site(Room(24 * GIB, 32 * GIB), places=100, node="here")]


def controller(saved: Sequence[str] = ()) -> Controller:
    around: Any = Mock()
    around.environ.return_value = {}
    outside: Any = AsyncMock(watch=Mock())
    outside.load.return_value = [SavedDeployment(spec(name), 1, 0.0) for name in saved]
    outside.load_engines.return_value = []
    machine: Any = Machine()
    return Controller(
        table=around,
        pool=around,
        store=outside,
        runtime=machine,
        engines=around,
        names=outside,
        secrets=around,
        mock_url=around,
        probe_interval=1.0,
    )


async def deploy(world: Controller, name: str) -> str:
    said = Mock()
    return await world.deploy(
        spec(name),
        replace=False,
        verify=True,
        wait=False,
        environment={},
        accepted=said,
        notify=said,
        note=said,
        warn=said,
    )


def make_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that needs 10 GiB, and workers that get nowhere."""
    model: Any = Mock()
    model.check.return_value = Memory(weights=8 * GIB, cache=2 * GIB, on_gpu=False)
    plan = EnginePlan(model, EngineOptions("/m", 1, (Task.CHAT,)), Timeouts(), "m")
    monkeypatch.setattr(prepare, "engine_plan", lambda *args: plan)
    monkeypatch.setattr(PrivateDeployment, "run", Mock())
    monkeypatch.setattr(time, "time", lambda: 0.0)


def test_what_is_still_being_loaded_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    make_up(monkeypatch)

    async def story() -> None:
        world = controller()
        assert await deploy(world, "a") == "accepted"
        with pytest.raises(CapacityExceeded, match=r"14\.0 GiB of 32\.0 GiB are free\. a is still being loaded\."):
            await world.scale("a", 3, Mock(), Mock())
        assert await deploy(world, "b") == "accepted"
        with pytest.raises(CapacityExceeded, match=r"4\.0 GiB of 32\.0 GiB are free\. a and b are still being loaded"):
            await deploy(world, "c")
        await world.undeploy("b", force=True, notify=Mock())
        assert await deploy(world, "c") == "accepted"
        await world.close()

    asyncio.run(story())


def test_who_was_loaded_takes_nothing_more_whatever_is_done_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    make_up(monkeypatch)
    monkeypatch.setattr(PrivateDeployment, "change", AsyncMock())

    async def story() -> None:
        world = controller()
        assert await deploy(world, "a") == "accepted"
        monkeypatch.setattr(PrivateDeployment, "state", lambda self: (State.READY, ""))
        assert await world.scale("a", 3, Mock(), Mock()) == "ready"
        await world.close()

    asyncio.run(story())


def test_a_broken_instance_is_shown_and_keeps_no_other_from_coming_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(spec: DeploymentSpec, *args: object) -> NoReturn:
        raise InvalidInput("its folder is gone.") if spec.name == "gone" else TypeError("a list, where none can be")

    async def restored() -> dict[str, tuple[State, str]]:
        world = controller(["gone", "odd"])
        await world.restore()
        return {name: world.get(name).state() for name in world.names()}

    monkeypatch.setattr(prepare, "engine_plan", plan)
    (gone, why), (odd, defect) = asyncio.run(restored()).values()
    assert (gone, odd) == (State.FAILED, State.FAILED)
    assert why == "its folder is gone."
    assert "a list, where none can be" in defect
