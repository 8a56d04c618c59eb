"""What is checked of a spec before anything is started."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from byzerllm.control.prepare import check, check_outside, engine_plan, masked_params
from byzerllm.errors import InvalidInput
from byzerllm.relay.pool import Pool
from byzerllm.spec import DeploymentSpec, Timeouts


def saas(**params: str) -> DeploymentSpec:
    named = {f"saas.{name}": value for name, value in params.items()}
    return DeploymentSpec(name="m", pretrained_model_type="saas/openai", infer_params={"saas.api_key": "sk-1", **named})


def private(backend: str = "llama_cpp", path: str = "/models/a.gguf", **params: str) -> DeploymentSpec:
    return DeploymentSpec(
        name="m", pretrained_model_type="custom/auto", infer_backend=backend, model_path=path, infer_params=params
    )


def outside(spec: DeploymentSpec, environ: dict[str, str] | None = None) -> list[str]:
    async def main() -> list[str]:
        pool = Pool()
        try:
            return await check_outside(spec, pool, "https://h/v1", environ or {}, verify=False)
        finally:
            pool.close()

    return asyncio.run(main())


def test_good_specs_pass() -> None:
    check(saas(), {})
    check(private(n_ctx="2048", idle_timeout="5"), {})


@pytest.mark.parametrize(
    ("spec", "param", "words"),
    [
        (DeploymentSpec(name="a b"), "model", "is no plain name"),
        (saas(organisation="o"), "saas.organisation", "Unknown parameter"),
        (private(backend=""), "infer_backend", "custom/auto needs an engine"),
        (private(backend="lama_cpp"), "infer_backend", "lama_cpp"),
        (private(n_ctxx="1"), "n_ctxx", "Unknown llama_cpp parameter"),
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


def test_outside_a_model_must_be_there(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
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
