"""llama.cpp, by way of xllamacpp: a wheel that holds llama.cpp's own HTTP server with its continuous batching.

Parameters have the names of llama.cpp and llama-cpp-python. One that is not given keeps llama.cpp's own default, but
for ``n_gpu_layers``, ``n_ctx``, ``n_threads`` and ``cache_ram``: a worker is to take what one expects of it. The
context is that of each slot; llama.cpp itself divides ``n_ctx`` among them.

``embedding=true`` makes an instance for embeddings, ``reranking=true`` one that ranks: its scores are what the model's
head gives, which for most is no number between 0 and 1. ``chat_template=none`` leaves completions only.

A worker has ``--worker_concurrency`` slots, by default 1.

On a machine with a GPU of NVIDIA's ``byzerllm engine install`` takes a build for CUDA 12.8 from xllamacpp's own index,
as PyPI has builds for CPUs only, and those of NVIDIA's libraries that the machine lacks; it needs glibc 2.35. Where it
cannot be had, or pip is told to look elsewhere and finds none, the build for CPUs is taken, and that is said.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzerllm.engines import environments, gguf
from byzerllm.engines.base import EngineOptions, Launch, Memory
from byzerllm.engines.hosting import OPTIONS_VARIABLE, host_command
from byzerllm.engines.llama_cpp_parameters import INT32, NO_TEMPLATE, PARAMETERS, VERBOSITY, read_parameters
from byzerllm.errors import EngineMissing, InvalidInput
from byzerllm.wire.base import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from byzerllm.spec import DeploymentSpec

HOST = "byzerllm.engines.host.llama_cpp"
KINDS = ("auto", "llama2", "llama")
DEFAULT_CACHE_RAM = 1024
AS_MANY_AS_FIT = -1
MAX_SLOTS = 256  # llama.cpp's own limit
_PROJECTOR, _DRAFT = PARAMETERS["mmproj"].attribute, PARAMETERS["model_draft"].attribute
# How far a draft model's vocabulary may differ: llama.cpp's own limits.
_FREE_WORDS, _MORE_WORDS = 5, 128
_F16 = 1  # ggml's number of the type that caches have by default
_MAPPED = 1  # of llama.cpp's ways to load, the default

_MAIN = (Task.CHAT, Task.COMPLETION, Task.RESPONSES)
_EMBEDS, _RANKS = (Task.EMBEDDING,), (Task.RERANK, Task.SCORE)
_EVERY = (Task.TOKENIZE, Task.DETOKENIZE)
TASKS = (*_MAIN, *_EMBEDS, *_RANKS, *_EVERY)
_READY: Mapping[Task, tuple[str, dict[str, Any]]] = {
    Task.EMBEDDING: ("/v1/embeddings", {"input": "a"}),
    Task.RERANK: ("/v1/rerank", {"query": "a", "documents": ["a"]}),
}
_GENERATES = ("/v1/completions", {"prompt": "a", "max_tokens": 1})

# What its log says at verbosity 3, the oldest first.
_PHASES: Mapping[str, str] = {
    "load_model: loading model '": "loading weights",
    "loading draft model '": "loading the draft model's weights",
    "llama threadpool init": "warming up",
    "initializing, n_slots": "preparing its slots",
}
_CAUSES: tuple[tuple[str, str], ...] = (
    (r"unknown model architecture: '(.*?)'", "This llama.cpp does not know the architecture {0}: a newer one may."),
    (
        r"allocating ([\d.]+) MiB on device (\d+): \S+ failed: out of memory",
        "Out of memory: GPU {1} has no {0} MiB left. Fewer n_gpu_layers, a smaller n_ctx or fewer slots need less.",
    ),
    (
        r"insufficient memory \(attempted to allocate ([\d.]+) MB\)",
        "Out of memory: {0} MB could not be had. A smaller n_ctx or fewer slots need less.",
    ),
    (r"tensor '(.*?)' (?:not found|data is not within)", "The model's file lacks the tensor {0}."),
    (
        r"mismatch between text model \(n_embd = (\d+)\) and mmproj \(n_embd = (\d+)\)",
        "mmproj belongs to another model: its vectors have {1} numbers, those of the model {0}.",
    ),
    (r"Failed to load CLIP model from (.+)", "mmproj={0} is no projector that this llama.cpp knows."),
    (r"failed to apply lora adapter: (.+)", "lora_path does not fit the model: {0}."),
    (
        r"chat template parsing error: std::exception",
        "chat_template cannot be read as a Jinja template; llama.cpp does not say where it is wrong.",
    ),
    (r"chat template parsing error: (.+)", "chat_template cannot be used: {0}."),
    (
        r"PTX was compiled with an unsupported toolchain",
        "The GPU cannot be used: its driver is older than the CUDA of this xllamacpp (12.8, if byzerllm installed it).",
    ),
    (r"failed to initialize CUDA: (.+)", "The GPU cannot be used: {0}. This xllamacpp may be for a newer driver."),
    (r"CUDA error: (.+)", "The GPU failed: {0}."),
)


class LlamaCpp:
    """The engine ``llama_cpp``."""

    name = "llama_cpp"
    secret_params: frozenset[str] = frozenset()

    def parse(self, spec: DeploymentSpec) -> EngineOptions:
        """Check the type, the slots and the parameters of ``spec``.

        Raises:
            InvalidInput: names what is wrong and what it may be.
        """
        if spec.kind not in KINDS or spec.is_saas:
            raise InvalidInput(
                f"--pretrained_model_type {spec.pretrained_model_type!r} cannot be run by llama_cpp.",
                hint="Use custom/auto.",
                param="pretrained_model_type",
            )
        if not spec.model_path:
            raise InvalidInput(
                "--model_path is missing: llama_cpp needs a .gguf file, or a folder with one.",
                param="model_path",
            )
        slots = spec.worker_concurrency or 1
        if slots > MAX_SLOTS:
            raise InvalidInput(
                f"--worker_concurrency {slots} is more than the {MAX_SLOTS} slots of llama.cpp.",
                param="worker_concurrency",
            )
        values, warnings = read_parameters(spec.infer_params)
        tasks = _tasks(values)
        _add_defaults(values, spec)
        if values.get("n_ctx", 0) * slots > INT32:
            raise InvalidInput(
                f"n_ctx={values['n_ctx']} for each of {slots} slots is more than llama.cpp can have.",
                param="n_ctx",
            )
        return EngineOptions(
            model_path=spec.model_path,
            slots=slots,
            tasks=tasks,
            values=values,
            warnings=(*warnings, *_warnings(spec, values)),
            wire=self.name,
        )

    def check(self, options: EngineOptions) -> Memory | None:
        """Look for the engine, and read the heads of the model's files. Blocks for some tenths of a second.

        Raises:
            EngineMissing: xllamacpp is not installed, or is a build for CPUs and layers are to be on a GPU.
            InvalidInput: a file is missing, is no GGUF, was cut short, or is not what it is given for.
        """
        if not _is_installed(options.python):
            raise EngineMissing("The engine llama_cpp is not installed.", hint="Run: byzerllm engine install llama_cpp")
        _check_build(options)
        header = gguf.check_model(options.model_path)
        _check_use(options, header)
        return _memory(options, header, header.size + _check_more(options.values, options.model_path))

    def phase(self, line: str) -> str | None:
        return next((said for words, said in _PHASES.items() if words in line), None)

    def cause(self, tail: str) -> str | None:
        for pattern, said in _CAUSES:
            found = re.search(pattern, tail)
            if found:
                return said.format(*(text.strip().rstrip(".") for text in found.groups()))
        return None

    def command(self, options: EngineOptions, host: str, port: int, token: str) -> Launch:
        """The process of one worker. Options and token travel in one variable that it removes at once."""
        handed = {
            "model_path": options.model_path,
            "slots": options.slots,
            "values": dict(options.values),
            "host": host,
            "port": port,
            "token": token,
        }
        path, body = _READY.get(options.task, _GENERATES)
        return Launch(
            argv=host_command(options.python, HOST),
            env={OPTIONS_VARIABLE: json.dumps(handed)},
            ready_path=path,
            ready_body=json.dumps(body).encode(),
        )


def _tasks(values: dict[str, Any]) -> tuple[Task, ...]:
    if values.get("pooling_type") == gguf.POOLING_RANK:
        return (*_RANKS, *_EVERY)
    if values.get("embedding"):
        return (*_EMBEDS, *_EVERY)
    if values.get("chat_template") == NO_TEMPLATE:
        del values["chat_template"]
        return (Task.COMPLETION, *_EVERY)
    return (*_MAIN, *_EVERY)


def _add_defaults(values: dict[str, Any], spec: DeploymentSpec) -> None:
    values["model_alias"] = spec.name
    values.setdefault("n_gpu_layers", AS_MANY_AS_FIT if spec.gpus_per_worker else 0)
    if "speculative.types" in values:
        values.setdefault(PARAMETERS["n_gpu_layers_draft"].attribute, values["n_gpu_layers"])
    values.setdefault("cache_ram_mib", DEFAULT_CACHE_RAM)
    values.setdefault("verbosity", VERBOSITY[True])
    if spec.cpus_per_worker >= 1:
        values.setdefault("cpuparams.n_threads", int(spec.cpus_per_worker))
    # Which machine it will be is not known here: the process itself counts the cores and takes its share.
    values["sharers"] = spec.num_workers
    values["gpus"] = spec.gpus_per_worker


def _warnings(spec: DeploymentSpec, values: Mapping[str, Any]) -> tuple[str, ...]:
    if values["n_gpu_layers"] and not spec.gpus_per_worker and sys.platform != "darwin":
        return ("n_gpu_layers has no effect: the instance has no GPU (--gpus_per_worker is 0).",)
    if spec.gpus_per_worker and not values["n_gpu_layers"]:
        return ("Its GPUs are not used: n_gpu_layers is 0. Without it they take as many layers as fit.",)
    return ()


def _is_installed(python: str) -> bool:
    """Whoever chose another environment than this one has seen that the engine is in it."""
    return python != sys.executable or importlib.util.find_spec("xllamacpp") is not None


def _check_build(options: EngineOptions) -> None:
    if not (options.values["gpus"] and options.values["n_gpu_layers"] and environments.has_nvidia()):
        return  # without a GPU here it runs on another machine, where the host finds out
    if environments.built_for_gpus(options.python) is False:
        first = "" if options.python == sys.executable else "byzerllm engine remove llama_cpp; "
        raise EngineMissing(
            "The worker has GPUs, and the installed xllamacpp is a build for CPUs, which cannot use them.",
            hint=f"Run: {first}byzerllm engine install llama_cpp. For GPUs of others than NVIDIA "
            "https://github.com/xorbitsai/xllamacpp has builds. With n_gpu_layers=0 the model runs on the CPU.",
        )


def _check_use(options: EngineOptions, header: gguf.Header) -> None:
    """Refuse a model that is for something else than the parameters say."""
    path, wanted = options.model_path, options.task
    if header.kind != "model":
        name = "lora_path" if header.kind == "adapter" else header.kind
        raise InvalidInput(
            f"--model_path {path} is no model but a part of one.",
            hint=f"Give it as {name}=, and the model it belongs to as --model_path.",
            param="model_path",
        )
    if header.pooling_type == gguf.POOLING_RANK and wanted is not Task.RERANK:
        raise InvalidInput(f"{path} is a reranker.", hint="Add reranking=true.", param="reranking")
    if wanted is Task.RERANK and not header.ranks:
        raise InvalidInput(
            f"{path} has no head that ranks (cls.weight or cls.output.weight).",
            hint="Take a reranker's file, or leave reranking out.",
            param="reranking",
        )
    if header.pooling_type and wanted not in (Task.EMBEDDING, Task.RERANK):
        raise InvalidInput(f"{path} is an embedding model.", hint="Add embedding=true.", param="embedding")
    if wanted is Task.CHAT and not header.has_template and "chat_template" not in options.values:
        raise InvalidInput(
            f"{path} has no chat template (tokenizer.chat_template).",
            hint="Add chat_template=FILE.jinja with the one it was trained on, chatml if that is the one, or"
            f" chat_template={NO_TEMPLATE} for completions only.",
            param="chat_template",
        )
    template = options.values.get("chat_template", "")
    if template.endswith(".jinja") and not Path(template).is_file():
        raise _not_there("chat_template", template)


def _check_more(values: Mapping[str, Any], model_path: str) -> int:
    """The bytes of the files beside the model."""
    size = sum(_check_file("lora_path", path, "adapter").size for path, _ in values.get("lora_adapters", ()))
    if _PROJECTOR in values:
        size += _check_file("mmproj", values[_PROJECTOR], "mmproj").size
    if _DRAFT in values:
        draft = _check_file("model_draft", values[_DRAFT], "model")
        _check_vocabulary(values[_DRAFT], model_path)
        size += draft.size
    return size


def _check_vocabulary(draft: str, model: str) -> None:
    """A draft model must have the model's words but for the first few, and a few more or less; llama.cpp would go on
    without it, and without a word."""
    mine, others = gguf.vocabulary(draft), gguf.vocabulary(model)
    shared = slice(_FREE_WORDS, min(len(mine), len(others)))
    if mine[shared] != others[shared] or abs(len(mine) - len(others)) > _MORE_WORDS:
        raise InvalidInput(
            f"model_draft={draft} has another vocabulary than the model.",
            hint="Take a smaller model of the same family.",
            param="model_draft",
        )


def _check_file(name: str, path: str, kind: str) -> gguf.Header:
    if not Path(path).is_file():
        raise _not_there(name, path)
    header = gguf.check_model(path)
    if header.kind != kind:
        raise InvalidInput(f"{name}={path} is of the kind {header.kind!r}, not {kind!r}.", param=name)
    return header


def _not_there(name: str, path: str) -> InvalidInput:
    hint = "Give the whole path: the server runs in another folder."
    return InvalidInput(f"{name}={path} does not exist.", hint=hint, param=name)


def _memory(options: EngineOptions, header: gguf.Header, weights: int) -> Memory | None:
    """What must fit at least; None where the layers may lie on GPUs and beside them."""
    values = options.values
    layers = values["n_gpu_layers"]
    on_gpu = bool(values["gpus"]) and layers != 0
    if on_gpu and layers <= header.layers:  # the output counts as one more layer
        return None
    split = [share for share in values.get("tensor_split", ()) if share]
    shares = 1 if values.get("split_mode") == 0 else len(split) or math.ceil(values["gpus"]) or 1
    mapped = not on_gpu and values.get("load_mode", _MAPPED) & _MAPPED != 0
    return Memory(weights, _cache_bytes(options, header), on_gpu, shares if on_gpu else 1, mapped)


def _cache_bytes(options: EngineOptions, header: gguf.Header) -> int:
    if header.cache is None:
        return 0
    values = options.values
    tokens = gguf.slot_context(header, values.get("n_ctx"))
    if header.cache.window and not values.get("swa_full"):
        tokens = min(tokens, header.cache.window)
    size = 0.0
    for numbers, name in ((header.cache.keys, "cache_type_k"), (header.cache.values, "cache_type_v")):
        block, width = gguf.BLOCKS[values.get(name, _F16)]
        size += numbers * width / block
    return int(size * tokens * options.slots)
