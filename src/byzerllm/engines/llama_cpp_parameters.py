"""The parameters of llama.cpp by the names that users know, each with its place in xllamacpp and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzerllm.engines.gguf import POOLING_RANK
from byzerllm.errors import InvalidInput
from byzerllm.spec import parse_bool, parse_float, parse_int, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

INT32 = 2**31 - 1
VERBOSITY = {True: 3, False: 2}  # llama.cpp's levels: 1 errors, 2 warnings, 3 what it does, 4 all
NO_TEMPLATE = "none"
POOLING_NONE = 0
_DRAFT_MODEL = 1  # llama.cpp's number for speculation with a second model

Reader = Callable[[str, str], Any]


@dataclass(frozen=True)
class Parameter:
    """Where a parameter goes among xllamacpp's ``CommonParams``, and how its text is read."""

    attribute: str
    read: Reader


def _whole(low: int, high: int = INT32) -> Reader:
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


def _path(name: str, text: str) -> str:
    if not text:
        raise InvalidInput(f"{name} is empty.", param=name)
    return str(Path(text).expanduser())


def _paths(name: str, text: str) -> list[str]:
    return [_path(name, part.strip()) for part in text.split(",")]


def _numbers(name: str, text: str) -> list[float]:
    return [parse_float(name, part) for part in text.split(",")]


def _seed(name: str, text: str) -> int:
    value: int = _whole(-1, 2**32 - 1)(name, text)
    return value if value >= 0 else 2**32 - 1  # llama.cpp's sign for a random seed


def _proportions(name: str, text: str) -> list[float]:
    parts = [parse_float(name, part, 0) for part in text.split(",")]
    if len(parts) > 128 or not any(parts):
        raise InvalidInput(f"{name}={text!r} must be proportions such as 3,1, one a GPU.", param=name)
    return parts


def _template(name: str, text: str) -> str:
    if text.endswith(".jinja"):
        return _path(name, text)
    if text not in ("chatml", NO_TEMPLATE) and "{" not in text:
        raise InvalidInput(
            f"{name}={text!r} must be a Jinja template, the path of a .jinja file, 'chatml' or '{NO_TEMPLATE}'.",
            hint=f"Without {name} the template in the model's own file is used.",
            param=name,
        )
    return text


def _not(name: str, text: str) -> bool:
    return not parse_bool(name, text)


def _verbosity(name: str, text: str) -> int:
    return VERBOSITY[parse_bool(name, text)]


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
    "lora_path": Parameter("lora_path", _paths),
    "lora_scale": Parameter("lora_scale", _numbers),
    "mmproj": Parameter("mmproj.path", _path),
    "mmproj_offload": Parameter("mmproj_use_gpu", parse_bool),
    "warmup": Parameter("warmup", parse_bool),
    # a smaller model that guesses ahead
    "model_draft": Parameter("speculative.draft.mparams.path", _path),
    "draft_max": Parameter("speculative.draft.n_max", _whole(1, 512)),
    "draft_min": Parameter("speculative.draft.n_min", _whole(0, 512)),
    "draft_p_min": Parameter("speculative.draft.p_min", _number(0)),
    "n_gpu_layers_draft": Parameter("speculative.draft.n_gpu_layers", _whole(-1)),
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
    "reranking": Parameter("reranking", parse_bool),
    "pooling_type": Parameter("pooling_type", _choice(none=POOLING_NONE, mean=1, cls=2, last=3, rank=POOLING_RANK)),
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
    "clip_model_path": "Use mmproj.",
    "draft_model": "Use model_draft.",
    "embeddings": "Use embedding.",
    "n_parallel": "Use --worker_concurrency.",
    "model_path": "Use --model_path.",
    "lora_base": "llama.cpp applies lora_path to the model as it is.",
    "rerank": "Use reranking.",
}

# Parameters of the older tool that have no use any more.
WITHOUT_EFFECT: Mapping[str, str] = {
    "logits_all": "a request that asks for logprobs gets them",
    "vocab_only": "a model is always loaded whole",
}


def read_parameters(params: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The values by xllamacpp's names, put in its form where it has under one name what users have under two; and
    warnings.

    Raises:
        InvalidInput: an unknown name (the nearest known one is named) or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    warnings: list[str] = []
    for name, text in params.items():
        if name in WITHOUT_EFFECT:
            warnings.append(_without_effect(name, text))
            continue
        if name in ELSEWHERE:
            raise InvalidInput(f"{name} is no parameter of llama_cpp.", hint=ELSEWHERE[name], param=name)
        parameter = PARAMETERS.get(name)
        if parameter is None:
            raise unknown("llama_cpp parameter", name, PARAMETERS, param=name)
        values[parameter.attribute] = parameter.read(name, text)
    _combine(values)
    if values.get("pooling_type") == POOLING_NONE:
        if values.get("embedding"):
            raise InvalidInput("pooling_type=none leaves no vector of a whole text.", param="pooling_type")
        del values["pooling_type"]
        warnings.append("pooling_type has no effect: the instance makes no embeddings.")
    return values, warnings


def _without_effect(name: str, text: str) -> str:
    if parse_bool(name, text) and name == "vocab_only":
        raise InvalidInput("vocab_only=true leaves a model that answers nothing.", hint="Leave it out.", param=name)
    return f"{name} has no effect: {WITHOUT_EFFECT[name]}."


def _combine(values: dict[str, Any]) -> None:
    if "use_mmap" in values or "use_mlock" in values:
        # llama_load_mode: 0 none, 1 mmap, 2 mlock, 3 both
        values["load_mode"] = values.pop("use_mmap", True) + 2 * values.pop("use_mlock", False)
    scales = values.pop("lora_scale", [1.0])
    if "lora_path" in values:
        paths = values.pop("lora_path")
        scales = scales * len(paths) if len(scales) == 1 else scales
        if len(scales) != len(paths):
            raise InvalidInput(
                f"lora_scale has {len(scales)} numbers for the {len(paths)} files of lora_path.", param="lora_scale"
            )
        values["lora_adapters"] = list(zip(paths, scales, strict=True))
    if PARAMETERS["model_draft"].attribute in values:
        values["speculative.types"] = [_DRAFT_MODEL]
    else:
        for name in ("draft_max", "draft_min", "draft_p_min", "n_gpu_layers_draft"):
            if PARAMETERS[name].attribute in values:
                raise InvalidInput(f"{name} needs model_draft: the smaller model's file.", param=name)
    rank = values.get("pooling_type") == POOLING_RANK
    if values.pop("reranking", rank):
        values |= {"embedding": True, "pooling_type": POOLING_RANK}
    elif rank:
        raise InvalidInput("pooling_type=rank is for reranking=true.", param="pooling_type")
