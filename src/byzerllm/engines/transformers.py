"""transformers: models of Hugging Face's form, by our own host, which batches what can be batched.

What a model does is read from its folder; a type other than ``custom/auto`` says what it must be. Parameters have
the names of ``from_pretrained``, with or without ``backend.`` in front. One that a kind of model has no use for is
refused.

Chats take images or sounds as their model does, in OpenAI's ``image_url`` and ``input_audio`` or as ``audio_url``, with
the data in the request: nothing is fetched.

A worker has ``--worker_concurrency`` slots, by default 16 for text that is generated, also about images or sounds, and
4 for all else. A model that cannot be batched (that is tried when it is loaded, and the log says why) answers one
request after the other. A CPU's threads are ``--cpus_per_worker`` when that is 1 or more, else the worker's share of
the cores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzerllm.engines import environments, hf_folder
from byzerllm.engines.base import EngineOptions, Launch, Memory
from byzerllm.engines.hf_folder import Folder, Kind
from byzerllm.engines.hf_parameters import TRANSFORMERS, check_kind, read_all
from byzerllm.engines.hosting import OPTIONS_VARIABLE, host_command
from byzerllm.errors import EngineMissing, InvalidInput
from byzerllm.spec import unknown
from byzerllm.wire.base import Task

if TYPE_CHECKING:
    from byzerllm.spec import DeploymentSpec

HOST = "byzerllm.engines.host.main"
TEXT_SLOTS, OTHER_SLOTS = 16, 4
SLOTS = {Kind.CAUSAL_LM: TEXT_SLOTS, Kind.MULTIMODAL_CHAT: TEXT_SLOTS}
MAX_SLOTS = 1024
DIVIDED = (Kind.CAUSAL_LM, Kind.MULTIMODAL_CHAT)  # among the GPUs of a worker; models of other kinds are on the first
MIN_CONTEXT = 2048  # tokens of one sequence that there must be memory for, unless fewer are wanted

_WORDS = (Task.TOKENIZE, Task.DETOKENIZE)
# Of each kind of model: the host's name for it, what it answers, and the request that proves that it works.
_HOSTED: Mapping[Kind, tuple[str, tuple[Task, ...], str, dict[str, Any]]] = {
    Kind.CAUSAL_LM: (
        "text",
        (Task.CHAT, Task.COMPLETION, *_WORDS),
        "/v1/completions",
        {"prompt": "a", "max_tokens": 1},
    ),
    Kind.MULTIMODAL_CHAT: (
        "multimodal",
        (Task.CHAT, Task.COMPLETION, *_WORDS),
        "/v1/completions",
        {"prompt": "a", "max_tokens": 1},
    ),
    Kind.EMBEDDING: ("embedding", (Task.EMBEDDING, *_WORDS), "/v1/embeddings", {"input": "a"}),
    Kind.RERANKER: ("reranker", (Task.RERANK, Task.SCORE, *_WORDS), "/v1/rerank", {"query": "a", "documents": ["b"]}),
    Kind.TRANSCRIPTION: ("transcription", (Task.TRANSCRIPTION,), "/ready", {}),
    Kind.SPEECH: ("speech", (Task.SPEECH,), "/v1/audio/speech", {"input": "a"}),
    Kind.IMAGE: ("image", (Task.IMAGE,), "/ready", {}),
}
TASKS = tuple(dict.fromkeys(task for _, tasks, _, _ in _HOSTED.values() for task in tasks))

# The older tool's types: each is for one kind of model.
ALIASES: Mapping[str, Kind] = {
    **dict.fromkeys(("llama", "llama2", "qwen", "falcon", "zephyr", "baichuan", "starcode"), Kind.CAUSAL_LM),
    **dict.fromkeys(("chatglm2", "chatglm6b", "moss", "alpha_moss", "dolly"), Kind.CAUSAL_LM),
    **dict.fromkeys(("bge", "m3e"), Kind.EMBEDDING),
    "bge_rerank": Kind.RERANKER,
    **dict.fromkeys(("qwen_vl_chat", "qwen_voice", "visualglm"), Kind.MULTIMODAL_CHAT),
    "whisper": Kind.TRANSCRIPTION,
    "bark": Kind.SPEECH,
    "stable_diffusion": Kind.IMAGE,
}
# Types of the older tool that need libraries nobody keeps up, or none of ours.
GONE: Mapping[str, str] = {
    "tokenizer": "Every text model answers /tokenize: deploy the model itself with custom/auto.",
}

_OPTIONAL = {Kind.EMBEDDING: "sentence-transformers", Kind.IMAGE: "diffusers"}
_CAUSE = re.compile(r"^byzerllm: cause: (.+)$", re.MULTILINE)
_PHASE = "byzerllm: phase: "


class Transformers:
    """The engine ``transformers``."""

    name = "transformers"
    secret_params: frozenset[str] = frozenset()

    def parse(self, spec: DeploymentSpec) -> EngineOptions:
        """Check the type and the parameters of ``spec``. What the model does is read from its folder, where that is on
        this machine; elsewhere it is taken to generate text.

        Raises:
            InvalidInput: names what is wrong and what it may be.
        """
        wanted = kind_of_type(spec)
        require_path(self.name, spec)
        values, warnings = read_all(self.name, TRANSFORMERS, spec.infer_params)
        kind = hf_folder.kind_of(_weights_folder(spec.model_path)) or wanted or Kind.CAUSAL_LM
        if wanted is not None and not _suits(kind, wanted):
            raise InvalidInput(
                f"--pretrained_model_type {spec.pretrained_model_type} is for a model of the kind {wanted.value}; "
                f"{spec.model_path} holds a model of the kind {kind.value}.",
                hint="custom/auto takes it as what it is.",
                param="pretrained_model_type",
            )
        check_kind(kind, values)
        if values.get("device") == "cuda" and not spec.gpus_per_worker:
            raise InvalidInput("backend.device=cuda needs --gpus_per_worker.", param="backend.device")
        task, tasks, _, _ = _HOSTED[kind]
        slots = slots_of(spec, SLOTS.get(kind, OTHER_SLOTS))
        beside = {"kind": kind.value, "task": task, "name": spec.name, "gpus": spec.gpus_per_worker}
        share = {"threads": int(spec.cpus_per_worker), "sharers": spec.num_workers}
        if spec.gpus_per_worker > 1 and kind not in DIVIDED:
            warnings.append(_idle_gpus(kind, spec.gpus_per_worker))
        return EngineOptions(spec.model_path, slots, tasks, {**beside, **share, "arguments": values}, tuple(warnings))

    def check(self, options: EngineOptions) -> Memory | None:
        """Look at the model's files and the packages that this kind of model needs. Blocks for some tenths of a second.

        Raises:
            EngineMissing: a package is not in the engine's environment.
            InvalidInput: a file is missing or cut short, or the parameters do not suit the model.
        """
        hf_folder.refuse_hub_name(options.model_path, self.name)
        arguments = options.values["arguments"]
        installed = environments.versions(options.python)
        kind = Kind(options.values["kind"])
        if kind in _OPTIONAL:
            _need(installed, _OPTIONAL[kind], f"a model of the kind {kind.value}", options.python)
        if arguments.get("quantization"):
            _need(installed, "bitsandbytes", f"backend.quantization={arguments['quantization']}", options.python)
        if "lora_path" in arguments:
            _need(installed, "peft", "backend.lora_path", options.python)
        check_files(arguments)
        folder = hf_folder.read(_weights_folder(options.model_path))
        check_folder(folder, arguments)
        on_gpu = bool(options.values["gpus"]) and arguments.get("device") != "cpu"
        shares = max(1, int(options.values["gpus"])) if on_gpu and kind in DIVIDED else 1
        mapped = kind is Kind.CAUSAL_LM and not on_gpu and stays_mapped(folder, arguments)
        return replace(memory_of(folder, arguments, on_gpu=on_gpu), shares=shares, mapped=mapped)

    def command(self, options: EngineOptions, host: str, port: int, token: str) -> Launch:
        """The process of one worker. Options and token travel in one variable that it removes at once."""
        return host_launch(self.name, HOST, options, host, port, token)

    def phase(self, line: str) -> str | None:
        return phase(line)

    def cause(self, tail: str) -> str | None:
        return cause(tail)


def kind_of_type(spec: DeploymentSpec) -> Kind | None:
    """The kind of model that a type of the older tool fixes; None for ``auto``.

    Raises:
        InvalidInput: there is no such type, or it is not supported.
    """
    if spec.kind in GONE:
        raise InvalidInput(
            f"--pretrained_model_type {spec.pretrained_model_type} is not supported any more.",
            hint=GONE[spec.kind],
            param="pretrained_model_type",
        )
    if spec.kind != "auto" and spec.kind not in ALIASES:
        raise unknown("--pretrained_model_type", spec.kind, ["auto", *ALIASES], param="pretrained_model_type")
    return ALIASES.get(spec.kind)


def require_path(engine: str, spec: DeploymentSpec) -> None:
    """Raises InvalidInput: there is no model path."""
    if not spec.model_path:
        raise InvalidInput(
            f"--model_path is missing: {engine} needs the folder of a Hugging Face model.", param="model_path"
        )


def slots_of(spec: DeploymentSpec, usual: int) -> int:
    """How many requests a worker of our host takes at a time.

    Raises:
        InvalidInput: more than it can.
    """
    slots = spec.worker_concurrency or usual
    if slots > MAX_SLOTS:
        raise InvalidInput(f"--worker_concurrency {slots} is more than {MAX_SLOTS} slots.", param="worker_concurrency")
    return slots


def _suits(kind: Kind, wanted: Kind) -> bool:
    return kind is wanted or (wanted is Kind.CAUSAL_LM and kind is Kind.MULTIMODAL_CHAT)  # which reads text too


def _idle_gpus(kind: Kind, gpus: float) -> str:
    return (
        f"--gpus_per_worker {gpus:g}: a worker with a model of the kind {kind.value} uses one GPU, and nobody the "
        "others. Use --gpus_per_worker 1 and a larger --num_workers."
    )


def _weights_folder(path: str) -> str:
    """In the older tool's layout of an adapter the weights are in ``PATH/pretrained_model``."""
    inner = Path(path).expanduser() / "pretrained_model"
    return str(inner) if inner.is_dir() else path


def _need(installed: Mapping[str, str], package: str, what: str, python: str) -> None:
    if package not in installed:
        raise EngineMissing(
            f"{what} needs the package {package} in the engine's environment.",
            hint=f"Run: {python} -m pip install {package}",
        )


def check_files(arguments: Mapping[str, Any]) -> None:
    """Raises InvalidInput: a file that a parameter names is not there."""
    for name in ("chat_template", "lora_path"):
        value = arguments.get(name, "{")
        if "{" not in value and not Path(value).exists():
            raise InvalidInput(
                f"backend.{name}={value} does not exist.",
                hint="Give the whole path: the server runs in another folder.",
                param=f"backend.{name}",
            )


def check_folder(folder: Folder, arguments: Mapping[str, Any]) -> None:
    """Raises InvalidInput: the parameters do not suit the model."""
    if folder.remote_code and not arguments.get("trust_remote_code"):
        raise InvalidInput(
            f"{folder.path} has code of its own (auto_map in config.json).",
            hint="Add backend.trust_remote_code=true if you trust it.",
            param="backend.trust_remote_code",
        )
    asked = arguments.get("max_model_len", 0)
    if folder.context_length and asked > folder.context_length:
        raise InvalidInput(
            f"backend.max_model_len={asked} is more than the {folder.context_length} tokens that the model reads.",
            param="backend.max_model_len",
        )


def memory_of(folder: Folder, arguments: Mapping[str, Any], *, on_gpu: bool) -> Memory:
    """What a worker needs for the weights and one sequence."""
    width = hf_folder.DTYPE_BYTES.get(dtype_of(folder, arguments, on_gpu=on_gpu))
    bits = arguments.get("quantization")
    tokens = arguments.get("max_model_len") or min(MIN_CONTEXT, folder.context_length or MIN_CONTEXT)
    return Memory(folder.weight_bytes(bits / 8 if bits else width), folder.cache_bytes(tokens, width=width), on_gpu)


def stays_mapped(folder: Folder, arguments: Mapping[str, Any]) -> bool:
    """Whether the weights of a model on the CPU stay in their files' pages, which all its workers share: nothing of
    them is converted or changed."""
    same = dtype_of(folder, arguments, on_gpu=False) == folder.dtype
    changed = "lora_path" in arguments or "quantization" in arguments
    return same and not changed and any(folder.path.glob("*.safetensors"))


def dtype_of(folder: Folder, arguments: Mapping[str, Any], *, on_gpu: bool) -> str:
    """The data type that the weights will have."""
    dtype: str = arguments.get("dtype", "auto")
    if dtype != "auto":
        return dtype
    if folder.kind is Kind.IMAGE:
        return "float32" if not on_gpu else "bfloat16" if folder.dtype == "bfloat16" else "float16"
    return "float32" if folder.dtype == "float16" and not on_gpu else folder.dtype


def host_launch(engine: str, module: str, options: EngineOptions, host: str, port: int, token: str) -> Launch:
    """How a worker of our own host is started."""
    given = options.values
    handed = {
        "engine": engine,
        "model_path": str(Path(options.model_path).expanduser()),
        "task": given["task"],
        "name": given["name"],
        "slots": options.slots,
        "threads": given["threads"],
        "sharers": given["sharers"],
        "gpus": given["gpus"],
        "values": given["arguments"],
        "host": host,
        "port": port,
        "token": token,
    }
    _, _, path, body = _HOSTED[Kind(given["kind"])]
    return Launch(
        argv=host_command(options.python, module),
        env={OPTIONS_VARIABLE: json.dumps(handed), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
        ready_path=path,
        ready_body=json.dumps(body).encode(),
    )


def phase(line: str) -> str | None:
    """What the host says that it is doing."""
    return line.removeprefix(_PHASE) if line.startswith(_PHASE) else None


def cause(tail: str) -> str | None:
    """Why the host ended, in its own words."""
    found = _CAUSE.findall(tail)
    return found[-1] if found else None
