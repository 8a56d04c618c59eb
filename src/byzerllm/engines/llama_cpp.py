"""llama.cpp, by way of xllamacpp: a wheel that holds llama.cpp's own HTTP server with its continuous batching.

Parameters have the names of llama.cpp and llama-cpp-python. One that is not given keeps llama.cpp's own default, but
for these:

* ``n_gpu_layers``: 0, no layer on a GPU; -1 puts there as many as fit;
* ``n_ctx``: 4096 tokens, or what the model was trained for if that is less. It is the context **of each slot**
  (llama.cpp itself divides it among them). 0 stands for what the model was trained for; no slot gets more than that;
* ``n_threads``: ``--cpus_per_worker`` when that is 1 or more, else the worker's share of the machine's cores;
* ``cache_ram``: 1024 MiB for the states of earlier prompts (llama.cpp: 8192), so that memory stays what one expects;
* with ``embedding=true``: ``pooling_type`` is ``mean`` where the model names none, and a prompt may fill ``n_batch``.

A worker has ``--worker_concurrency`` slots, by default 1.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzerllm.engines import gguf
from byzerllm.engines.base import EngineOptions, Launch, Memory
from byzerllm.errors import EngineMissing, InvalidInput
from byzerllm.spec import parse_bool, parse_float, parse_int, unknown
from byzerllm.wire.base import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from byzerllm.spec import DeploymentSpec

HOST = "byzerllm.engines.host.llama_cpp"
OPTIONS_VARIABLE = "BYZERLLM_ENGINE"
KINDS = ("auto", "llama2", "llama")
DEFAULT_CACHE_RAM = 1024
MAX_SLOTS = 256  # llama.cpp's own limit
_INT32 = 2**31 - 1
_VERBOSITY = {True: 3, False: 2}  # llama.cpp's levels: 1 errors, 2 warnings, 3 what it does, 4 all

Reader = Callable[[str, str], Any]


@dataclass(frozen=True)
class Parameter:
    """Where a parameter goes among xllamacpp's ``CommonParams``, and how its text is read."""

    attribute: str
    read: Reader


def _whole(low: int, high: int = _INT32) -> Reader:
    def read(name: str, text: str) -> int:
        value = parse_int(name, text, low)
        if value > high:
            raise InvalidInput(f"{name}={text} must be at most {high}.", param=name)
        return value

    return read


def _number(low: float | None = None) -> Reader:
    return lambda name, text: parse_float(name, text, low)


def _choice(**options: int) -> Reader:
    """One of the words, or the number that llama.cpp has for it."""

    def read(name: str, text: str) -> int:
        word = text.strip().lower().replace("-", "_")
        numbers = {str(number): number for number in options.values()}
        value = options.get(word, numbers.get(text.strip()))
        if value is None:
            words = ", ".join(f"{word} ({number})" for word, number in options.items())
            raise InvalidInput(f"{name}={text!r} must be one of {words}.", param=name)
        return value

    return read


def _text(name: str, text: str) -> str:
    if not text:
        raise InvalidInput(f"{name} is empty.", param=name)
    return text


def _seed(name: str, text: str) -> int:
    value: int = _whole(-1, 2**32 - 1)(name, text)
    return value if value >= 0 else 2**32 - 1  # llama.cpp's sign for a random seed


def _proportions(name: str, text: str) -> list[float]:
    parts = [parse_float(name, part, 0) for part in text.split(",")]
    if len(parts) > 128 or not any(parts):
        raise InvalidInput(f"{name}={text!r} must be proportions such as 3,1, one a GPU.", param=name)
    return parts


def _template(name: str, text: str) -> str:
    if text != "chatml" and "{" not in text:
        raise InvalidInput(
            f"{name}={text!r} must be a Jinja template or 'chatml'.",
            hint=f"Without {name} the template in the model's own file is used.",
            param=name,
        )
    return text


def _not(name: str, text: str) -> bool:
    return not parse_bool(name, text)


def _verbosity(name: str, text: str) -> int:
    return _VERBOSITY[parse_bool(name, text)]


_KV_TYPE = _choice(f32=0, f16=1, bf16=30, q8_0=8, q4_0=2, q4_1=3, iq4_nl=20, q5_0=6, q5_1=7)

PARAMETERS: Mapping[str, Parameter] = {
    # the model and where it lies
    "n_gpu_layers": Parameter("n_gpu_layers", _whole(-1)),
    "split_mode": Parameter("split_mode", _choice(none=0, layer=1, row=2, tensor=3)),
    "main_gpu": Parameter("main_gpu", _whole(0)),
    "tensor_split": Parameter("tensor_split", _proportions),
    "use_mmap": Parameter("use_mmap", parse_bool),
    "use_mlock": Parameter("use_mlock", parse_bool),
    "numa": Parameter("numa", _choice(disabled=0, distribute=1, isolate=2, numactl=3)),
    "lora_path": Parameter("lora_path", _text),
    "lora_scale": Parameter("lora_scale", _number()),
    "warmup": Parameter("warmup", parse_bool),
    # the context
    "n_ctx": Parameter("n_ctx", _whole(0)),
    "n_batch": Parameter("n_batch", _whole(1)),
    "n_ubatch": Parameter("n_ubatch", _whole(1)),
    "n_threads": Parameter("cpuparams.n_threads", _whole(1, 512)),
    "n_threads_batch": Parameter("cpuparams_batch.n_threads", _whole(1, 512)),
    "n_keep": Parameter("n_keep", _whole(-1)),
    "ctx_shift": Parameter("ctx_shift", parse_bool),
    "flash_attn": Parameter("flash_attn_type", _choice(auto=-1, off=0, on=1, false=0, true=1)),
    "rope_scaling_type": Parameter("rope_scaling_type", _choice(none=0, linear=1, yarn=2, longrope=3)),
    "rope_freq_base": Parameter("rope_freq_base", _number(0)),
    "rope_freq_scale": Parameter("rope_freq_scale", _number(0)),
    "yarn_ext_factor": Parameter("yarn_ext_factor", _number()),
    "yarn_attn_factor": Parameter("yarn_attn_factor", _number()),
    "yarn_beta_fast": Parameter("yarn_beta_fast", _number()),
    "yarn_beta_slow": Parameter("yarn_beta_slow", _number()),
    "yarn_orig_ctx": Parameter("yarn_orig_ctx", _whole(0)),
    # its cache
    "offload_kqv": Parameter("no_kv_offload", _not),
    "type_k": Parameter("cache_type_k", _KV_TYPE),
    "type_v": Parameter("cache_type_v", _KV_TYPE),
    "kv_unified": Parameter("kv_unified", parse_bool),
    "swa_full": Parameter("swa_full", parse_bool),
    "cache_prompt": Parameter("cache_prompt", parse_bool),
    "cache_reuse": Parameter("n_cache_reuse", _whole(0)),
    "cache_ram": Parameter("cache_ram_mib", _whole(-1)),
    # what it answers
    "embedding": Parameter("embedding", parse_bool),
    "pooling_type": Parameter("pooling_type", _choice(mean=1, cls=2, last=3)),
    "chat_template": Parameter("chat_template", _template),
    "reasoning_format": Parameter("reasoning_format", _choice(none=0, auto=1, deepseek_legacy=2, deepseek=3)),
    "n_predict": Parameter("n_predict", _whole(-1)),
    "seed": Parameter("sampling.seed", _seed),
    "last_n_tokens_size": Parameter("sampling.penalty_last_n", _whole(-1)),
    "verbose": Parameter("verbosity", _verbosity),
}

# Names that people know from llama.cpp or llama-cpp-python, and what stands in their place.
ELSEWHERE: Mapping[str, str] = {
    "chat_format": "Use chat_template; without it the template in the model's own file is used.",
    "n_parallel": "Use --worker_concurrency.",
    "model_path": "Use --model_path.",
    "lora_base": "llama.cpp applies lora_path to the model as it is.",
}


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
        values = _read_all(spec.infer_params)
        tasks = (Task.EMBEDDING,) if values.get("embedding") else (Task.CHAT, Task.COMPLETION, Task.RESPONSES)
        _combine(values)
        _add_defaults(values, spec)
        if values.get("n_ctx", 0) * slots > _INT32:
            raise InvalidInput(
                f"n_ctx={values['n_ctx']} for each of {slots} slots is more than llama.cpp can have.",
                param="n_ctx",
            )
        return EngineOptions(model_path=spec.model_path, slots=slots, tasks=tasks, values=values)

    def check(self, options: EngineOptions) -> Memory | None:
        """Look for the engine, and read the heads of the model's files. Blocks for some tenths of a second.

        Raises:
            EngineMissing: xllamacpp is not installed.
            InvalidInput: a file is missing, is no GGUF, or was cut short.
        """
        if importlib.util.find_spec("xllamacpp") is None:
            raise EngineMissing("The engine llama_cpp is not installed.", hint="Run: pip install 'byzerllm[llama-cpp]'")
        gguf.check_model(options.model_path)
        for path, _ in options.values.get("lora_adapters", ()):
            if not Path(path).is_file():
                raise InvalidInput(
                    f"lora_path={path} does not exist.",
                    hint="Give the whole path: the server runs in another folder.",
                    param="lora_path",
                )
            gguf.check_model(path)
        return None

    def phase(self, line: str) -> str | None:
        return None

    def cause(self, tail: str) -> str | None:
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
        embedding = options.task is Task.EMBEDDING
        body = {"input": "a"} if embedding else {"prompt": "a", "max_tokens": 1}
        return Launch(
            argv=(sys.executable, "-m", HOST),
            env={OPTIONS_VARIABLE: json.dumps(handed)},
            ready_path="/v1/embeddings" if embedding else "/v1/completions",
            ready_body=json.dumps(body).encode(),
        )


def _read_all(params: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in params.items():
        if name in ELSEWHERE:
            raise InvalidInput(f"{name} is no parameter of llama_cpp.", hint=ELSEWHERE[name], param=name)
        parameter = PARAMETERS.get(name)
        if parameter is None:
            raise unknown("llama_cpp parameter", name, PARAMETERS, param=name)
        values[parameter.attribute] = parameter.read(name, text)
    return values


def _combine(values: dict[str, Any]) -> None:
    """Put in llama.cpp's form what it has under one name and users under two."""
    if "use_mmap" in values or "use_mlock" in values:
        # llama_load_mode: 0 none, 1 mmap, 2 mlock, 3 both
        values["load_mode"] = values.pop("use_mmap", True) + 2 * values.pop("use_mlock", False)
    scale = values.pop("lora_scale", 1.0)
    if "lora_path" in values:
        values["lora_adapters"] = [(str(Path(values.pop("lora_path")).expanduser()), scale)]


def _add_defaults(values: dict[str, Any], spec: DeploymentSpec) -> None:
    values["model_alias"] = spec.name
    values.setdefault("n_gpu_layers", 0)
    values.setdefault("cache_ram_mib", DEFAULT_CACHE_RAM)
    values.setdefault("verbosity", _VERBOSITY[True])
    if spec.cpus_per_worker >= 1:
        values.setdefault("cpuparams.n_threads", int(spec.cpus_per_worker))
    # Which machine it will be is not known here: the process itself counts the cores and takes its share.
    values["sharers"] = spec.num_workers
