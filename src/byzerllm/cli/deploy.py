"""``byzerllm deploy``: from flags to a declared instance, and its way to ready."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from byzerllm.cli.flags import AMOUNTS, MODEL, NUMBER, PARAMS, SWITCH, WHOLE, Flag
from byzerllm.client.admin import AdminClient, Event
from byzerllm.client.launch import ensure_server
from byzerllm.engines.hf_folder import looks_like_hub_name
from byzerllm.errors import Conflict, InvalidInput
from byzerllm.providers.registry import is_vendor
from byzerllm.spec import LOAD_BALANCE, DeploymentSpec, check_spec, resolve

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from byzerllm.cli.console import Console
    from byzerllm.settings import Settings

_DEFAULT = DeploymentSpec(name="")

# Flags that are a field of the spec under the same name.
_SPEC_FLAGS = (
    Flag("pretrained_model_type", default=_DEFAULT.pretrained_model_type),
    Flag("infer_backend", default=_DEFAULT.infer_backend),
    Flag("infer_params", PARAMS, default=_DEFAULT.infer_params),
    Flag("model_path", default=_DEFAULT.model_path),
    Flag("num_workers", WHOLE, default=_DEFAULT.num_workers),
    Flag("worker_concurrency", WHOLE, default=_DEFAULT.worker_concurrency),
    Flag("cpus_per_worker", NUMBER, default=_DEFAULT.cpus_per_worker),
    Flag("gpus_per_worker", NUMBER, default=_DEFAULT.gpus_per_worker),
    Flag("resources", AMOUNTS, default=_DEFAULT.resources),
    Flag("load_balance", default=_DEFAULT.load_balance, choices=LOAD_BALANCE),
    Flag("max_queue", WHOLE, default=_DEFAULT.max_queue),
    Flag("queue_timeout", NUMBER, default=_DEFAULT.queue_timeout),
)
FLAGS = (
    MODEL,
    *_SPEC_FLAGS,
    Flag("no_wait", SWITCH, False),
    Flag("no_verify", SWITCH, False),
    Flag("replace", SWITCH, False),
)


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> int:
    spec = build_spec(arguments)
    check_spec(spec)
    check_type(spec)
    check_resources(spec, on_ray=bool(settings.ray_address))
    body = {
        "spec": msgspec.to_builtins(spec),
        "replace": arguments.replace,
        "verify": not arguments.no_verify,
        "wait": not arguments.no_wait,
        "environment": referenced_environment(spec.infer_params, os.environ),
    }
    client = AdminClient(ensure_server(settings, console.progress))
    outcome = _deploy(client, body, spec.name, console)
    for event, line in (
        ("unchanged", f"Model {spec.name} already deployed"),
        ("accepted", f"Model {spec.name} is being deployed"),
        ("ready", f"Model {spec.name} deployed successfully"),
    ):
        if outcome["event"] == event:
            console.data(line)
    return 0


def build_spec(arguments: argparse.Namespace) -> DeploymentSpec:
    """The instance that the flags describe. The server has another working directory, so paths are made absolute."""
    values = {flag.name: getattr(arguments, flag.name) for flag in _SPEC_FLAGS}
    values["infer_params"] = {name: _absolute_reference(text) for name, text in values["infer_params"].items()}
    spec = DeploymentSpec(name=arguments.model, **values)
    if spec.is_saas or not spec.model_path or looks_like_hub_name(spec.model_path):
        return spec
    return msgspec.structs.replace(spec, model_path=_absolute(spec.model_path))


def check_type(spec: DeploymentSpec) -> None:
    """Refuse a vendor's name where ``saas/`` was left out; an engine's own types are for the engine to know.

    Raises:
        InvalidInput: names the type that was probably meant.
    """
    if spec.is_saas or spec.infer_backend or spec.model_path or not is_vendor(spec.kind):
        return
    raise InvalidInput(
        f"--pretrained_model_type {spec.pretrained_model_type!r}: a vendor's type begins with saas/.",
        hint=f"Did you mean saas/{spec.kind}?",
        param="pretrained_model_type",
    )


def check_resources(spec: DeploymentSpec, *, on_ray: bool) -> None:
    """Refuse resources where there can be none.

    Raises:
        InvalidInput: they are a Ray cluster's, and none is meant.
    """
    if spec.resources and not on_ray:
        raise InvalidInput(
            f"--resources {next(iter(spec.resources))} is for a Ray cluster, and this command uses this machine alone.",
            hint="Leave it out, or name the cluster with --ray_address HOST:PORT.",
            param="resources",
        )


def referenced_environment(params: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that ``env:NAME`` values refer to: the server was started from another environment.

    Raises:
        InvalidInput: one is not set.
    """
    references = ((name, text) for name, text in params.items() if text.startswith("env:"))
    return {text.removeprefix("env:"): resolve(name, text, environ) for name, text in references}


def _absolute_reference(text: str) -> str:
    return f"file:{_absolute(text.removeprefix('file:'))}" if text.startswith("file:") else text


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _deploy(client: AdminClient, body: dict[str, Any], name: str, console: Console) -> Event:
    final = ("unchanged", "ready") if body["wait"] else ("unchanged", "ready", "accepted")
    try:
        return client.operation(
            "POST",
            "/admin/deployments",
            body,
            final=final,
            notify=partial(console.event, name),
            lost_hint=f"Run byzerllm stat --model {name} to see what became of it.",
        )
    except Conflict as error:
        error.hint = error.hint or "Add --replace to replace it, without a break for its callers."
        raise
