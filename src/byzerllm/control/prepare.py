"""Everything that can be wrong with a spec and can be known before anything is started."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from byzerllm.control.engine_worker import EnginePlan
from byzerllm.control.memory import MemoryCheck, refusal
from byzerllm.control.upstreams import saas_upstreams
from byzerllm.control.verify import verify_saas
from byzerllm.engines import engine
from byzerllm.engines.base import Memory
from byzerllm.engines.choice import choose, is_open, refuse_other
from byzerllm.engines.environments import Environments
from byzerllm.errors import ByzerError, Conflict, InvalidInput
from byzerllm.providers.parse import parse
from byzerllm.providers.registry import secret_params
from byzerllm.relay.pool import Pool
from byzerllm.spec import (
    MASK,
    DeploymentSpec,
    Timeouts,
    check_spec,
    differences,
    looks_secret,
    mask,
    parse_float,
    resolve,
)

_WITHOUT_RESTART = frozenset(("num_workers", "load_balance", "max_queue", "queue_timeout"))
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
    if spec.is_saas or not is_open(spec):
        return spec, ""
    if current is not None and current == msgspec.structs.replace(spec, infer_backend=current.infer_backend):
        return current, ""
    choice = await asyncio.to_thread(choose, spec)
    note = f"infer_backend: {choice.engine} ({choice.reason})"
    return msgspec.structs.replace(spec, infer_backend=choice.engine), note


def check(spec: DeploymentSpec, environ: Mapping[str, str]) -> None:
    """Types, names and values. Reads what ``file:`` parameters name and a model's ``config.json``: callers in an event
    loop use a thread.

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
    refuse_other(spec)
    _refuse_vendors_params(spec)
    params = {k: resolve(k, v, environ) for k, v in spec.infer_params.items()}
    own = {k: v for k, v in params.items() if k not in _TIMEOUTS}
    ours = {k: v for k, v in params.items() if k in _TIMEOUTS}
    given = {k.removesuffix("_timeout"): parse_float(k, v, 0.001) for k, v in ours.items()}
    options = found.parse(msgspec.structs.replace(spec, infer_params=own))
    return EnginePlan(found, dataclasses.replace(options, python=python(found.name)), Timeouts(**given), spec.name)


def _refuse_vendors_params(spec: DeploymentSpec) -> None:
    for name in spec.infer_params:
        if name.startswith("saas."):
            raise InvalidInput(
                f"{name} is for a vendor's API, and {spec.pretrained_model_type} runs weights of your own.",
                hint="Leave it out, or use a --pretrained_model_type that begins with saas/.",
                param=name,
            )


def restarts(before: DeploymentSpec, spec: DeploymentSpec) -> bool:
    """Whether the change replaces the workers that run."""
    return not {name for name, _, _ in differences(before, spec)} <= _WITHOUT_RESTART


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
        plan, why = await _look(spec, before, outside, environ, binding=verify)
        if why and verify:
            raise refusal(why)
        return [*plan.options.warnings, *([why] if why else [])]
    options = parse(spec, environ)
    saas_upstreams(options, base_url)
    warnings = list(options.warnings)
    if verify:
        warnings += await verify_saas(outside.pool, options, base_url)
    return warnings


async def check_scale(
    spec: DeploymentSpec, before: DeploymentSpec, outside: Outside, environ: Mapping[str, str]
) -> None:
    """Whether there is memory for the workers that ``spec`` has more than ``before``.

    Raises:
        CapacityExceeded: there is not.
        ByzerError: what they would start from is not there any more.
    """
    if not spec.is_saas and spec.num_workers > before.num_workers:
        _, why = await _look(spec, before, outside, environ, binding=True)
        if why:
            raise refusal(why, "byzerllm deploy --replace --no_verify")


async def _look(
    spec: DeploymentSpec,
    before: DeploymentSpec | None,
    outside: Outside,
    environ: Mapping[str, str],
    *,
    binding: bool,
) -> tuple[EnginePlan, str]:
    """The checked plan of a private instance, and why it does not fit into memory."""
    plan, memory = await _check_engine(spec, outside, environ)
    if memory is None:
        return plan, ""
    if before is None or before.is_saas:
        return plan, await outside.memory.look(spec, memory, spec.num_workers, binding=binding)
    if not restarts(before, spec):
        added = spec.num_workers - before.num_workers
        return plan, await outside.memory.look(spec, memory, added, binding=binding) if added > 0 else ""
    old = memory  # they are taken for alike where it cannot be told
    with suppress(ByzerError):  # its files may be gone
        old = (await _check_engine(before, outside, environ))[1] or memory
    return plan, await outside.memory.look(spec, memory, spec.num_workers, old, binding=binding)


async def _check_engine(
    spec: DeploymentSpec, outside: Outside, environ: Mapping[str, str]
) -> tuple[EnginePlan, Memory | None]:
    """Is the engine there, and the model? With what one worker needs."""
    python = await asyncio.to_thread(outside.engines.interpreter, spec.infer_backend)
    plan = await asyncio.to_thread(engine_plan, spec, environ, lambda engine: python)
    return plan, await asyncio.to_thread(plan.engine.check, plan.options)


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
