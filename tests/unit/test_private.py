"""What a private instance does before it runs."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

from byzerllm.control.engine_worker import EnginePlan
from byzerllm.control.private import PrivateDeployment, Surroundings
from byzerllm.engines import engine
from byzerllm.engines.base import EngineOptions
from byzerllm.spec import DeploymentSpec, Timeouts
from byzerllm.wire.base import Task

SPEC = DeploymentSpec(name="m", pretrained_model_type="custom/auto", infer_backend="llama_cpp", model_path="/m")


def test_others_go_on_while_its_models_files_are_read() -> None:
    others_went_on = threading.Event()

    def plan(spec: DeploymentSpec) -> EnginePlan:
        assert others_went_on.wait(30), "the loop waits for the disk"
        return EnginePlan(engine("llama_cpp"), EngineOptions("/m", 1, (Task.EMBEDDING,)), Timeouts(), "m")

    async def build() -> PrivateDeployment:
        nothing = cast("Any", None)
        around = Surroundings(runtime=nothing, pool=nothing, store=nothing, plan=plan, probe_interval=1.0)
        asyncio.get_running_loop().call_later(0, others_went_on.set)
        return await PrivateDeployment.build(SPEC, 1, 0.0, around)

    assert asyncio.run(build()).instance.task is Task.EMBEDDING
