"""vLLM: one worker is one vLLM server, with its continuous batching, on one GPU, several, or none.

Every ``backend.NAME`` is vLLM's own argument ``--NAME``. One that is not given keeps vLLM's own default, but for these:

* ``tensor_parallel_size``: the whole GPUs of a worker (``--gpus_per_worker``), 1 for a part of a GPU or none;
* ``gpu_memory_utilization``: 0.9 of the GPU, or of the part of it that the worker has;
* ``max_num_seqs``: the worker's slots: ``--worker_concurrency``, by default 100;
* ``runner``: ``pooling`` for embedding models and rerankers;
* without a GPU: ``enforce_eager`` (compiling would take half a minute), ``dtype`` as the model has it, a KV cache of
  4 GiB at most that holds at least one request of ``max_model_len`` (by itself vLLM takes nearly all memory), and as
  many threads as ``--cpus_per_worker`` says when that is 1 or more.

Images, sounds and videos come inside a request (``data:``). vLLM fetches them only where ``allowed_media_domains`` says
from where (redirects are not followed), or ``allowed_local_media_path`` from which folder.

A chat model's folder without a chat template answers completions only, until one is given with ``chat_template``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzerllm.engines import hf_folder, vllm_arguments, vllm_installed, vllm_log, vllm_memory
from byzerllm.engines.base import EngineOptions, Launch, Memory
from byzerllm.engines.hf_folder import Folder, Kind
from byzerllm.engines.hosting import OPTIONS_VARIABLE, host_command
from byzerllm.errors import InvalidInput
from byzerllm.spec import unknown
from byzerllm.wire.base import Task
from byzerllm.wire.vllm import VllmFetchingWire, VllmWire

if TYPE_CHECKING:
    from byzerllm.spec import DeploymentSpec

HOST = "byzerllm.engines.host.vllm"
PREFIX = vllm_arguments.PREFIX
DEFAULT_SLOTS = 100
GPU_SHARE = 0.9
NO_DOMAIN = "nothing.invalid"  # RFC 2606: a name that will never be anybody's

# Parameters of the older tool that today's vLLM has no use for.
WITHOUT_EFFECT: Mapping[str, str] = {
    "worker_use_ray": "a worker's processes are placed by byzerllm",
    "engine_use_ray": "a worker's processes are placed by byzerllm",
    "udfName": "its metrics are at /metrics of byzerllm's server",
}
_CHAT = (Task.CHAT, Task.COMPLETION, Task.RESPONSES, Task.TOKENIZE, Task.DETOKENIZE)
_EMBEDDING = (Task.EMBEDDING, Task.TOKENIZE, Task.DETOKENIZE)
_RERANK = (Task.RERANK, Task.SCORE, Task.TOKENIZE, Task.DETOKENIZE)
TASKS = tuple(dict.fromkeys((*_CHAT, *_EMBEDDING, *_RERANK)))
# By the main task: the request that proves that a worker works.
_PROOFS: Mapping[Task, tuple[str, dict[str, Any]]] = {
    Task.CHAT: ("/v1/completions", {"prompt": "a", "max_tokens": 1}),
    Task.EMBEDDING: ("/v1/embeddings", {"input": "a"}),
    Task.RERANK: ("/v1/rerank", {"query": "a", "documents": ["b"]}),
}
_OTHER_ENGINES = (Kind.TRANSCRIPTION, Kind.SPEECH, Kind.IMAGE)


class Vllm:
    """The engine ``vllm``."""

    name = "vllm"
    secret_params: frozenset[str] = frozenset((PREFIX + "hf_token", PREFIX + "hf-token"))

    def parse(self, spec: DeploymentSpec) -> EngineOptions:
        """Check the type, the GPUs and the parameters of ``spec``. Names that our table lacks are left to ``check``.

        What the model answers is read from its ``config.json``, where the folder is on this machine.

        Raises:
            InvalidInput: names what is wrong and what it may be.
        """
        if spec.kind != "auto" or spec.is_saas:
            raise InvalidInput(
                f"--pretrained_model_type {spec.pretrained_model_type!r} cannot be run by vllm.",
                hint="Use custom/auto.",
                param="pretrained_model_type",
            )
        if not spec.model_path:
            raise InvalidInput(
                "--model_path is missing: vllm needs the folder of a Hugging Face model.", param="model_path"
            )
        values, warnings = _read_all(spec.infer_params)
        kind = hf_folder.kind_of(spec.model_path)
        if kind in _OTHER_ENGINES:
            raise InvalidInput(
                f"--model_path {spec.model_path} is a model for {kind.value}, which vllm does not do here.",
                hint="Use --infer_backend transformers.",
                param="infer_backend",
            )
        tasks = _tasks(values, kind)
        if tasks is not _CHAT:
            values["runner"] = "pooling"
        slots = spec.worker_concurrency or DEFAULT_SLOTS
        if values.get("lora_modules") and not values.get("enable_lora"):
            raise InvalidInput(f"{PREFIX}lora_modules needs {PREFIX}enable_lora=true.", param=f"{PREFIX}lora_modules")
        if "lora_modules" in values and spec.name not in _adapters(values):
            warnings.append(f"{PREFIX}lora_modules has no effect: no adapter has the instance's name, {spec.name}.")
        wire = _media(values)
        _divide(values, spec.gpus_per_worker)
        _add_defaults(values, spec.gpus_per_worker, slots)
        beside = {
            "name": spec.name,
            "gpus": spec.gpus_per_worker,
            "threads": int(spec.cpus_per_worker),
            "sharers": spec.num_workers,
            "hf_token": values.pop("hf_token", ""),
        }
        return EngineOptions(spec.model_path, slots, tasks, {**beside, "arguments": values}, tuple(warnings), wire=wire)

    def check(self, options: EngineOptions) -> Memory | None:
        """Look at the installed vLLM and the model's files. Blocks for some tenths of a second; for some seconds when a
        version is first asked for arguments that our table lacks.

        Raises:
            EngineMissing: vLLM is not installed, or does not start.
            InvalidInput: it lacks an argument or does not suit the GPUs; a file of the model is missing or cut short.
        """
        arguments, gpus = options.values["arguments"], options.values["gpus"]
        version, for_cpu = vllm_installed.find(options.python)
        vllm_installed.check_device(version, for_cpu, gpus)
        vllm_installed.check_names(arguments, options.python, version)
        _check_paths(arguments)
        if not _has_folder(options.model_path, arguments):
            return None
        folder = hf_folder.read(options.model_path, tokenizer="tokenizer" not in arguments)
        _check_model(folder, arguments, options.task)
        weights, cache = vllm_memory.needs(folder, arguments, options.slots, on_gpu=gpus > 0)
        return Memory(weights, cache, gpus > 0, _devices(arguments))

    def command(self, options: EngineOptions, host: str, port: int, token: str) -> Launch:
        """The process of one worker; the token and what is not vLLM's own travel in its environment."""
        given, path = options.values, options.model_path
        local = _is_local(path)
        handed = {
            "model_path": path,
            "slots": options.slots,
            "values": given["arguments"],
            "on_gpu": given["gpus"] > 0,
            "shares_gpu": 0 < given["gpus"] < 1,
            "threads": given["threads"],
            "sharers": given["sharers"],
            "offline": local and not any(map(_on_hub, given["arguments"].values())),
        }
        variables = {
            OPTIONS_VARIABLE: json.dumps(handed),
            "VLLM_API_KEY": token,
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",  # they would lead out of the domains that are allowed
            **({"HF_TOKEN": given["hf_token"]} if given["hf_token"] else {}),
        }
        own = {
            "model": str(Path(path).expanduser()) if local else path,
            # An adapter of this name answers in the model's place.
            "served_model_name": given["name"] + ("-base" if given["name"] in _adapters(given["arguments"]) else ""),
            "host": host,
            "port": port,
            "disable_uvicorn_access_log": True,
        }
        ready_path, body = _PROOFS[options.task]
        return Launch(
            argv=(*host_command(options.python, HOST), *vllm_arguments.flags({**own, **given["arguments"]})),
            env=variables,
            ready_path=ready_path,
            ready_body=json.dumps({"model": given["name"], **body}).encode(),
        )

    def phase(self, line: str) -> str | None:
        """What a line of vLLM's log says that it is doing."""
        return vllm_log.phase(line)

    def cause(self, tail: str) -> str | None:
        """Why vLLM ended."""
        return vllm_log.cause(tail)


def _read_all(params: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    warnings: list[str] = []
    for param, text in params.items():
        name = vllm_arguments.normal(param)
        if name in WITHOUT_EFFECT:
            warnings.append(f"{param} has no effect: {WITHOUT_EFFECT[name]}.")
            continue
        if not param.startswith(PREFIX):
            raise unknown("vllm parameter", param, _settable(), param=param)
        reason = vllm_arguments.our_reason(name.partition(".")[0])
        if reason:
            raise InvalidInput(f"{param} is not for users to set.", hint=reason, param=param)
        if name in values:
            raise InvalidInput(f"{PREFIX}{name} is given twice, once as {param}.", param=param)
        values[name] = vllm_arguments.read(name, text)
    return values, warnings


def _adapters(values: Mapping[str, Any]) -> dict[str, str]:
    """Name and path of each LoRA adapter."""
    return dict(_adapter(module) for module in values.get("lora_modules", ()))


def _adapter(module: str) -> tuple[str, str]:
    """One that is given as ``name=path`` or as a JSON object.

    Raises:
        InvalidInput: it is neither.
    """
    name, _, path = module.partition("=")
    if module.startswith("{"):
        with suppress(ValueError):
            found = json.loads(module)
            name, path = found.get("name"), found.get("path")
    if not (name and isinstance(name, str) and path and isinstance(path, str)):
        param = f"{PREFIX}lora_modules"
        raise InvalidInput(
            f"{param}: {module!r} must be name=path.",
            hint='Or a JSON object with "name" and "path".',
            param=param,
        )
    return name, path


def _settable() -> list[str]:
    return [PREFIX + name for name in vllm_arguments.FORMS]


def _tasks(values: Mapping[str, Any], kind: Kind | None) -> tuple[Task, ...]:
    """What the server will answer, by the arguments first and by the model's kind where they leave it open."""
    runner, convert = values.get("runner"), values.get("convert")
    as_classifier = convert == "classify" or "ForSequenceClassification" in str(values.get("hf_overrides"))
    if runner == "generate" or (
        kind not in (Kind.EMBEDDING, Kind.RERANKER) and not (runner or convert or as_classifier)
    ):
        return _CHAT
    if as_classifier or (kind is Kind.RERANKER and convert != "embed"):
        return _RERANK
    return _EMBEDDING if runner == "pooling" or convert == "embed" or kind is Kind.EMBEDDING else _CHAT


def _divide(values: dict[str, Any], gpus: float) -> None:
    """Divide the model among the worker's GPUs. Without any, vLLM divides it among ranks on CPUs if asked to."""
    if gpus > 1 and gpus != int(gpus):
        raise InvalidInput(
            f"--gpus_per_worker {gpus:g}: a worker of vllm has whole GPUs, or a part of one.", param="gpus_per_worker"
        )
    stages = values.get("pipeline_parallel_size", 1)
    if gpus >= 1:
        values.setdefault("tensor_parallel_size", max(1, int(gpus) // max(1, stages)))
    values.setdefault("tensor_parallel_size", 1)
    if gpus and _devices(values) != max(1, int(gpus)):
        product = " x pipeline_parallel_size" if stages != 1 else ""
        raise InvalidInput(
            f"backend.tensor_parallel_size{product} is {_devices(values)}, and --gpus_per_worker is {gpus:g}.",
            hint="Give the GPUs with --gpus_per_worker; tensor_parallel_size follows.",
            param="backend.tensor_parallel_size",
        )


def _devices(values: Mapping[str, Any]) -> int:
    return int(values["tensor_parallel_size"] * values.get("pipeline_parallel_size", 1))


def _add_defaults(values: dict[str, Any], gpus: float, slots: int) -> None:
    values.setdefault("max_num_seqs", slots)
    if not gpus:
        values.setdefault("enforce_eager", True)
    elif not values.keys() & {"device_memory_utilization", "kv_cache_memory_bytes"}:
        values.setdefault("gpu_memory_utilization", round(GPU_SHARE * min(gpus, 1.0), 4))


def _media(values: dict[str, Any]) -> str:
    """The wire: with domains or a folder to fetch from, vLLM itself looks at each address. Without domains it would
    take any, so it gets one that nobody has."""
    if not values.keys() & {"allowed_media_domains", "allowed_local_media_path"}:
        return VllmWire.name
    values["allowed_media_domains"] = values.get("allowed_media_domains") or [NO_DOMAIN]
    return VllmFetchingWire.name


def _on_hub(value: Any) -> bool:
    """Whether an argument's value names something on the hub, or may do so."""
    if isinstance(value, dict):
        return any(map(_on_hub, value.values()))
    if isinstance(value, list):
        return any(map(_on_hub, value))
    if not isinstance(value, str):
        return False
    if value.startswith(("{", "[")):
        try:
            return _on_hub(json.loads(value))
        except ValueError:  # a template
            return False
    return hf_folder.looks_like_hub_name(value.rpartition("=")[2])  # name=path, in lists


def _is_local(path: str) -> bool:
    """Whether the model is a folder of the worker's machine: no name on a hub, no address of a store."""
    return "://" not in path and not hf_folder.looks_like_hub_name(path)


def _has_folder(path: str, values: Mapping[str, Any]) -> bool:
    """Whether the model is a folder that ``hf_folder`` can read. Mistral's own form is one that it cannot."""
    mistral = (Path(path).expanduser() / "params.json").is_file() and not hf_folder.is_folder(path)
    return _is_local(path) and not mistral and values.get("load_format") != "dummy"


def _check_paths(values: Mapping[str, Any]) -> None:
    """The files that arguments name, as far as these are paths and not names on a hub."""
    named = {name: values.get(name, "") for name in ("chat_template", "allowed_local_media_path")}
    if "{" in named["chat_template"]:  # the template itself
        del named["chat_template"]
    named |= {f"lora_modules {name}": path for name, path in _adapters(values).items()}
    for name, path in named.items():
        if path and not (hf_folder.looks_like_hub_name(path) or (path.startswith("/") and Path(path).exists())):
            raise InvalidInput(
                f"{PREFIX}{name}={path} does not exist.",
                hint="Give the whole path: the server runs in another folder.",
                param=PREFIX + name.partition(" ")[0],
            )


def _check_model(folder: Folder, values: Mapping[str, Any], task: Task) -> None:
    if task is Task.RERANK and folder.labels > 1 and "hf_overrides" not in values:
        raise InvalidInput(
            f"{folder.path} is a classifier with {folder.labels} classes; a reranker has one.", param="model_path"
        )
    length, limit = values.get("max_model_len"), folder.context_length
    if length and limit and length > limit and "hf_overrides" not in values:
        raise InvalidInput(
            f"backend.max_model_len={length} is more than the {limit} tokens that the model in {folder.path} can have.",
            param="backend.max_model_len",
        )
