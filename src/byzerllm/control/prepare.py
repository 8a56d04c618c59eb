"""Everything that can be wrong with a spec and can be known before anything is started."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from byzerllm.control.engine_worker import EnginePlan
from byzerllm.control.memory import MemoryCheck, refusal
from byzerllm.control.upstreams import saas_upstreams
from byzerllm.control.verify import verify_saas
from byzerllm.engines import engine
from byzerllm.engines.choice import choose
from byzerllm.engines.environments import Environments
from byzerllm.errors import Conflict, InvalidInput
from byzerllm.providers.parse import parse
from byzerllm.providers.registry import secret_params
from byzerllm.relay.pool import Pool
from byzerllm.spec import MASK, DeploymentSpec, Timeouts, check_spec, looks_secret, mask, parse_float, resolve

_TIMEOUTS = ("connect_timeout", "first_byte_timeout", "idle_timeout", "total_timeout")


@dataclass(frozen=True)
class Outside:
    """What a spec is checked against beyond itself."""

    pool: Pool
    engines: Environments
    memory: MemoryCheck


async def with_backend(spec: DeploymentSpec, current: DeploymentSpec | None) -> tuple[DeploymentSpec, str]:
    """The spec of a private instance with its engine, chosen where it was left out; and a word on the choice.

    What is deployed already, but for the engine that was left out, keeps its own.

    Raises:
        InvalidInput: it cannot be chosen, since there is no model at the path.
    """
    check_spec(spec)
    if spec.is_saas or spec.infer_backend:
        return spec, ""
    if current is not None and current == msgspec.structs.replace(spec, infer_backend=current.infer_backend):
        return current, ""
    choice = await asyncio.to_thread(choose, spec)
    note = f"infer_backend: {choice.engine} ({choice.reason})"
    return msgspec.structs.replace(spec, infer_backend=choice.engine), note


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


def engine_plan(
    spec: DeploymentSpec, environ: Mapping[str, str], python: Callable[[str], str] = lambda engine: sys.executable
) -> EnginePlan:
    """The engine and its checked options; ``python`` gives the interpreter that runs it.

    The four timeouts are ours: they may be given beside the engine's own.
    """
    found = engine(spec.infer_backend)
    params = {k: resolve(k, v, environ) for k, v in spec.infer_params.items()}
    own = {k: v for k, v in params.items() if k not in _TIMEOUTS}
    ours = {k: v for k, v in params.items() if k in _TIMEOUTS}
    given = {k.removesuffix("_timeout"): parse_float(k, v, 0.001) for k, v in ours.items()}
    options = found.parse(msgspec.structs.replace(spec, infer_params=own))
    return EnginePlan(found, dataclasses.replace(options, python=python(found.name)), Timeouts(**given), spec.name)


async def check_outside(
    spec: DeploymentSpec,
    before: DeploymentSpec | None,
    outside: Outside,
    base_url: str,
    environ: Mapping[str, str],
    *,
    verify: bool,
) -> list[str]:
    """What needs a look at the disk, the machine or the vendor; returns warnings. ``before``: what runs already.

    Raises:
        ByzerError: something is not as it must be: files, engine and memory, or key, address and model.
    """
    if not spec.is_saas:
        running = 0 if before is None or before.is_saas else before.num_workers
        return await _check_private(spec, outside, environ, running, verify)
    options = parse(spec, environ)
    saas_upstreams(options, base_url)
    warnings = list(options.warnings)
    if verify:
        warnings += await verify_saas(outside.pool, options, base_url)
    return warnings


async def _check_private(
    spec: DeploymentSpec, outside: Outside, environ: Mapping[str, str], running: int, verify: bool
) -> list[str]:
    python = await asyncio.to_thread(outside.engines.interpreter, spec.infer_backend)
    plan = engine_plan(spec, environ, lambda engine: python)
    memory = await asyncio.to_thread(plan.engine.check, plan.options)
    # Workers are replaced one at a time: each finds the room that another has left.
    coming = max(1, spec.num_workers - running)
    why = await outside.memory.look(spec, memory, coming) if memory is not None else ""
    if why and verify:
        raise refusal(why)
    return [*plan.options.warnings, *([why] if why else [])]


def masked_params(spec: DeploymentSpec) -> dict[str, str]:
    """The parameters as they may be shown."""
    names = [k for k in spec.infer_params if looks_secret(k)]
    try:
        names += secret_params(spec.kind) if spec.is_saas else engine(spec.infer_backend).secret_params
    except InvalidInput:  # a type or engine that is gone: hide everything
        names += spec.infer_params
    return mask(spec.infer_params, names)


def conflict(current: DeploymentSpec, requested: DeploymentSpec, rows: list[tuple[str, str, str]]) -> Conflict:
    """The error for a name that is taken by an instance with other parameters."""
    hidden = {n for spec in (current, requested) for n, value in masked_params(spec).items() if value == MASK}

    def shown(name: str, value: str) -> str:
        return MASK if name in hidden and value != "(not set)" else value

    changes = [{"name": n, "current": shown(n, a), "requested": shown(n, b)} for n, a, b in rows]
    return Conflict(
        f"{current.name} is already deployed with other parameters: {', '.join(n for n, _, _ in rows)}.",
        hint="Use --replace to change it without refusing a request, or another --model.",
        details={"differences": changes},
    )
