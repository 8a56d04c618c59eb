"""What is checked of a spec before anything is started."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
import pytest

from byzerllm.control.memory import MemoryCheck
from byzerllm.control.prepare import (
    Outside,
    check,
    check_outside,
    check_scale,
    engine_plan,
    masked_params,
    with_backend,
)
from byzerllm.engines.base import EngineOptions
from byzerllm.engines.environments import Environments
from byzerllm.engines.llama_cpp import LlamaCpp
from byzerllm.errors import CapacityExceeded, EngineMissing, InvalidInput
from byzerllm.relay.pool import Pool
from byzerllm.runtime.base import Room, Runtime, Site
from byzerllm.spec import DeploymentSpec, Timeouts


def saas(**params: str) -> DeploymentSpec:
    named = {f"saas.{name}": value for name, value in params.items()}
    return DeploymentSpec(name="m", pretrained_model_type="saas/openai", infer_params={"saas.api_key": "sk-1", **named})


def private(backend: str = "llama_cpp", path: str = "/models/a.gguf", **params: str) -> DeploymentSpec:
    return DeploymentSpec(
        name="m", pretrained_model_type="custom/auto", infer_backend=backend, model_path=path, infer_params=params
    )


@dataclass
class Machine:
    """Of a runtime, the memory that it says is free."""

    free: int
    running: int = 0

    async def memory(self, spec: DeploymentSpec, *, on_gpu: bool) -> list[Site]:
        return [Site(Room(self.free, 1 << 40), 100, self.running)]

    def prefer(self, instance: str, nodes: Sequence[str]) -> None:
        """There is one machine only."""


def outside(
    spec: DeploymentSpec,
    environ: dict[str, str] | None = None,
    *,
    before: DeploymentSpec | None = None,
    machine: Machine | None = None,
    verify: bool = False,
) -> list[str]:
    async def main() -> list[str]:
        pool = Pool()
        runtime = cast(Runtime, machine or Machine(1 << 40))
        around = Outside(pool, Environments(Path("/nowhere")), MemoryCheck(runtime, lambda name: False))
        try:
            return await check_outside(spec, before, around, "https://h/v1", environ or {}, verify=verify)
        finally:
            pool.close()

    return asyncio.run(main())


def chosen(spec: DeploymentSpec, current: DeploymentSpec | None = None) -> tuple[DeploymentSpec, str]:
    return asyncio.run(with_backend(spec, current))


def test_good_specs_pass() -> None:
    check(saas(), {})
    check(private(n_ctx="2048", idle_timeout="5"), {})


@pytest.mark.parametrize(
    ("spec", "param", "words"),
    [
        (DeploymentSpec(name="a b"), "model", "is no plain name"),
        (saas(organisation="o"), "saas.organisation", "Unknown parameter"),
        (private(backend="lama_cpp"), "infer_backend", "lama_cpp"),
        (private(n_ctxx="1"), "n_ctxx", "Unknown llama_cpp parameter"),
        (private(**{"saas.model": "x"}), "saas.model", "saas.model is for a vendor's API"),
        (private(idle_timeout="0"), "idle_timeout", "idle_timeout=0 must be at least 0.001"),
        (private(total_timeout="long"), "total_timeout", "must be a number"),
    ],
)
def test_what_is_wrong_is_named(spec: DeploymentSpec, param: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        check(spec, {})
    assert refused.value.param == param


def test_the_plan_of_a_private_instance() -> None:
    plan = engine_plan(private(n_ctx="2048", connect_timeout="1", first_byte_timeout="2", total_timeout="4"), {})
    assert plan.timeouts == Timeouts(connect=1, first_byte=2, total=4)
    assert (plan.engine.name, plan.model, plan.options.model_path) == ("llama_cpp", "m", "/models/a.gguf")
    assert plan.options.values["n_ctx"] == 2048
    assert engine_plan(private(), {}).timeouts == Timeouts()


def test_an_engine_runs_where_it_is_installed() -> None:
    assert engine_plan(private(), {}).options.python == sys.executable
    assert (
        engine_plan(private(), {}, lambda engine: f"/e/{engine}/bin/python").options.python == "/e/llama_cpp/bin/python"
    )
    with pytest.raises(EngineMissing, match="byzerllm engine install vllm"):
        outside(private(backend="vllm"))


def test_an_engine_that_was_left_out_is_chosen_and_said(tiny_gguf: Path) -> None:
    spec, note = chosen(private(backend="", path=str(tiny_gguf)))
    assert spec == private(path=str(tiny_gguf))
    assert note == "infer_backend: llama_cpp (a GGUF file)"
    assert chosen(private()) == (private(), "")
    assert chosen(saas()) == (saas(), "")


def test_a_redeploy_without_the_engine_keeps_the_one_there_is() -> None:
    current = private(backend="transformers", path="/gone")
    assert chosen(private(backend="", path="/gone"), current) == (current, "")
    with pytest.raises(InvalidInput, match="/other does not exist"):
        chosen(private(backend="", path="/other"), current)


def test_what_does_not_fit_into_memory_is_refused_unless_it_is_not_to_be_verified(tiny_gguf: Path) -> None:
    spec = private(path=str(tiny_gguf))
    with pytest.raises(CapacityExceeded, match=r"m needs .* MiB of memory") as refused:
        outside(spec, machine=Machine(1000), verify=True)
    assert "--no_verify" in str(refused.value.hint)
    (warning,) = outside(spec, machine=Machine(1000))
    assert warning == refused.value.message
    assert outside(spec, machine=Machine(1 << 40), verify=True) == []


def test_a_models_files_are_not_read_in_the_event_loop(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def parse(self: LlamaCpp, spec: DeploymentSpec) -> EngineOptions:
        threads.append(threading.current_thread())
        return original(self, spec)

    original = LlamaCpp.parse
    monkeypatch.setattr(LlamaCpp, "parse", parse)
    outside(private(path=str(tiny_gguf)))
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def worker_size(spec: DeploymentSpec) -> int:
    plan = engine_plan(spec, {})
    memory = plan.engine.check(plan.options)
    assert memory is not None
    return memory.weights + memory.cache


def fits(spec: DeploymentSpec, before: DeploymentSpec, free: int) -> bool:
    """Whether so many bytes let it pass, and a tenth less does not."""

    def passes(free: int) -> bool:
        try:
            running = 0 if before.is_saas else before.num_workers
            outside(spec, before=before, machine=Machine(free, running), verify=True)
        except CapacityExceeded:
            return False
        return True

    return passes(free) and not passes(free * 9 // 10)


def workers(count: int, path: Path, n_ctx: int) -> DeploymentSpec:
    """Each has memory of its own."""
    return msgspec.structs.replace(private(path=str(path), use_mmap="false", n_ctx=str(n_ctx)), num_workers=count)


def test_workers_that_are_replaced_leave_their_own_room_and_no_more(tiny_gguf: Path) -> None:
    small, large = (worker_size(workers(1, tiny_gguf, n_ctx)) for n_ctx in (256, 2048))
    new = workers(4, tiny_gguf, 2048)
    assert fits(new, workers(4, tiny_gguf, 256), 4 * large - 4 * small)
    assert fits(new, workers(1, tiny_gguf, 256), 4 * large - small)
    assert fits(new, saas(), 4 * large)
    assert fits(new, workers(9, tiny_gguf, 256), large), "the first one comes before an old one leaves"
    assert fits(new, workers(2, tiny_gguf.with_name("gone.gguf"), 256), 2 * large), "taken for alike"


def test_workers_that_stay_need_nothing(tiny_gguf: Path) -> None:
    spec = workers(4, tiny_gguf, 2048)
    for running in (4, 5):
        before = msgspec.structs.replace(spec, num_workers=running, max_queue=1)
        assert outside(spec, before=before, machine=Machine(0), verify=True) == []
    assert fits(spec, workers(1, tiny_gguf, 2048), 3 * worker_size(spec))


def scale(spec: DeploymentSpec, before: DeploymentSpec, free: int) -> None:
    async def main() -> None:
        runtime = cast(Runtime, Machine(free, before.num_workers))
        around = Outside(Pool(), Environments(Path("/nowhere")), MemoryCheck(runtime, lambda name: False))
        await check_scale(spec, before, around, {})

    asyncio.run(main())


def test_workers_that_are_added_must_fit(tiny_gguf: Path) -> None:
    two, five = workers(2, tiny_gguf, 2048), workers(5, tiny_gguf, 2048)
    scale(five, two, 3 * worker_size(two))
    with pytest.raises(CapacityExceeded, match="each of 3 workers") as refused:
        scale(five, two, 2 * worker_size(two))
    assert "byzerllm deploy --replace --no_verify" in str(refused.value.hint)
    scale(two, five, 0)
    scale(saas(), saas(), 0)


def test_outside_a_model_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.gguf"):
        outside(private(path=str(tmp_path / "none.gguf")))


def test_outside_references_must_resolve_and_warnings_are_handed_on() -> None:
    assert outside(saas()) == []
    assert outside(saas(api_key="env:KEY"), {"KEY": "sk"}) == []
    (warning,) = outside(saas(api_type="azure"))
    assert warning.startswith("saas.api_type has no effect")
    with pytest.raises(InvalidInput, match="KEY is not set"):
        outside(saas(api_key="env:KEY"))


def test_parameters_are_shown_without_secrets() -> None:
    assert masked_params(saas(api_key="sk-1", proxies="http://u:p@h:1", model="x", api_version="v")) == {
        "saas.api_key": "******", "saas.proxies": "******", "saas.model": "x", "saas.api_version": "v",
    }  # fmt: skip
    assert masked_params(saas(api_key="env:KEY"))["saas.api_key"] == "env:KEY"
    assert masked_params(private(n_ctx="1")) == {"n_ctx": "1"}


def test_of_a_type_or_engine_that_is_gone_no_parameter_is_shown() -> None:
    assert masked_params(private(backend="gone", n_ctx="1")) == {"n_ctx": "******"}
    gone = DeploymentSpec(name="m", pretrained_model_type="saas/gone", infer_params={"saas.pin": "1", "x": "env:X"})
    assert masked_params(gone) == {"saas.pin": "******", "x": "env:X"}
