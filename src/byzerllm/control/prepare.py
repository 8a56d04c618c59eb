"""Everything that can be wrong with a spec and can be known before anything is started."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from byzerllm.control.engine_worker import EnginePlan
from byzerllm.control.upstreams import saas_upstreams
from byzerllm.control.verify import verify_saas
from byzerllm.engines import engine
from byzerllm.errors import InvalidInput
from byzerllm.providers.parse import parse
from byzerllm.providers.registry import secret_params
from byzerllm.relay.pool import Pool
from byzerllm.spec import DeploymentSpec, Timeouts, check_spec, looks_secret, mask, parse_float, resolve

_TIMEOUTS = ("connect_timeout", "first_byte_timeout", "idle_timeout", "total_timeout")


def check(spec: DeploymentSpec, environ: Mapping[str, str]) -> None:
    """Types, names and values; reads nothing but what ``file:`` parameters name.

    Raises:
        InvalidInput: what is wrong, and the nearest right name.
    """
    check_spec(spec)
    if spec.is_saas:
        parse(spec, environ)
    else:
        engine_plan(spec, environ)


def engine_plan(spec: DeploymentSpec, environ: Mapping[str, str]) -> EnginePlan:
    """The engine and its checked options. The four timeouts are ours: they may be given beside the engine's own."""
    if not spec.infer_backend:
        raise InvalidInput(
            f"--infer_backend is missing: {spec.pretrained_model_type} needs an engine.",
            hint="For a GGUF file: --infer_backend llama_cpp",
            param="infer_backend",
        )
    found = engine(spec.infer_backend)
    params = {k: resolve(k, v, environ) for k, v in spec.infer_params.items()}
    own = {k: v for k, v in params.items() if k not in _TIMEOUTS}
    ours = {k: v for k, v in params.items() if k in _TIMEOUTS}
    given = {k.removesuffix("_timeout"): parse_float(k, v, 0.001) for k, v in ours.items()}
    options = found.parse(msgspec.structs.replace(spec, infer_params=own))
    return EnginePlan(found, options, Timeouts(**given), spec.name)


async def check_outside(
    spec: DeploymentSpec, pool: Pool, base_url: str, environ: Mapping[str, str], *, verify: bool
) -> list[str]:
    """What needs a look at the disk or the vendor; returns warnings.

    Raises:
        ByzerError: the model file, the engine, the key, the address or the model is not as it must be.
    """
    if not spec.is_saas:
        plan = engine_plan(spec, environ)
        await asyncio.to_thread(plan.engine.check, plan.options)
        return []
    options = parse(spec, environ)
    saas_upstreams(options, base_url)
    warnings = list(options.warnings)
    if verify:
        warnings += await verify_saas(pool, options, base_url)
    return warnings


def masked_params(spec: DeploymentSpec) -> dict[str, str]:
    """The parameters as they may be shown."""
    names = [k for k in spec.infer_params if looks_secret(k)]
    try:
        names += secret_params(spec.kind) if spec.is_saas else engine(spec.infer_backend).secret_params
    except InvalidInput:  # a type or engine that is gone: hide everything
        names += spec.infer_params
    return mask(spec.infer_params, names)
