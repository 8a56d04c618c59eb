"""The parameters of llama.cpp by the names that users know, each with its place in xllamacpp and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from byzerllm.engines import parameters
from byzerllm.engines.gguf import POOLING_RANK
from byzerllm.engines.parameters import BOOLEAN, PATH, Form, number, read_path, whole
from byzerllm.errors import InvalidInput
from byzerllm.spec import parse_bool, parse_float, parse_int, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

INT32 = 2**31 - 1
VERBOSITY = {True: 3, False: 2}  # llama.cpp's levels: 1 errors, 2 warnings, 3 what it does, 4 all
NO_TEMPLATE = "none"
POOLING_NONE = 0
_DRAFT_MODEL = 1  # llama.cpp's number for speculation with a second model
_RANDOM_SEED = 2**32 - 1  # llama.cpp's sign for one


@dataclass(frozen=True)
class Parameter(parameters.Parameter):
    """``attribute`` is its place among xllamacpp's ``CommonParams``."""

    attribute: str


def _choice(**options: int) -> Form:
    """One of the words, or the number that llama.cpp has for it."""

    def read(name: str, text: str) -> int:
        word = text.strip().lower().replace("-", "_")
        numbers = {str(number): number for number in options.values()}
        value = options.get(word, numbers.get(text.strip()))
        if value is None:
            words = ", ".join(f"{word} ({number})" for word, number in options.items())
            raise InvalidInput(f"{name}={text!r} must be one of {words}.", param=name)
        return value

    return Form(", ".join(options), read)


def _count(low: int, high: int = INT32) -> Form:
    """A whole number, of 32 bits at most; the documentation names only a limit that one may meet."""
    return Form(whole(low, high if high < INT32 else None).said, whole(low, high).read)


def _paths(name: str, text: str) -> list[str]:
    return [read_path(name, part.strip()) for part in text.split(",")]


def _numbers(name: str, text: str) -> list[float]:
    return [parse_float(name, part) for part in text.split(",")]


def _seed(name: str, text: str) -> int:
    value = parse_int(name, text, -1)
    if value > _RANDOM_SEED:
        raise InvalidInput(f"{name}={text} must be at most {_RANDOM_SEED}.", param=name)
    return value if value >= 0 else _RANDOM_SEED


def _proportions(name: str, text: str) -> list[float]:
    parts = [parse_float(name, part, 0) for part in text.split(",")]
    if len(parts) > 128 or not any(parts):
        raise InvalidInput(f"{name}={text!r} must be proportions such as 3,1, one a GPU.", param=name)
    return parts


def _template(name: str, text: str) -> str:
    if text.endswith(".jinja"):
        return read_path(name, text)
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
_FLASH = Form("auto, on, off", _choice(auto=-1, off=0, on=1, false=0, true=1).read)
_TEMPLATE = Form(f"path of a .jinja file, the template itself, chatml, {NO_TEMPLATE}", _template)
_MODELS = "the model's own"

PARAMETERS: Mapping[str, Parameter] = {
    # the model and where it lies
    "n_gpu_layers": Parameter(
        _count(-1),
        "-1 with `--gpus_per_worker`, else 0",
        "layers of the model on GPUs; -1: as many as fit",
        "n_gpu_layers",
    ),
    "split_mode": Parameter(
        _choice(none=0, layer=1, row=2, tensor=3),
        "layer",
        "how several GPUs share the model: by whole layers, by parts of each, or not at all",
        "split_mode",
    ),
    "main_gpu": Parameter(_count(0), "0", "the GPU of `split_mode=none`, and of small parts with `row`", "main_gpu"),
    "tensor_split": Parameter(
        Form("numbers with commas", _proportions),
        "by their free memory",
        "the parts that the GPUs have, one number each, such as `3,1`",
        "tensor_split",
    ),
    "use_mmap": Parameter(
        BOOLEAN, "true", "map the file into memory, so that workers share it and a start is quick", "use_mmap"
    ),
    "use_mlock": Parameter(BOOLEAN, "false", "keep the weights in RAM, never in swap", "use_mlock"),
    "numa": Parameter(
        _choice(disabled=0, distribute=1, isolate=2, numactl=3),
        "disabled",
        "how threads are placed on a machine with several NUMA nodes",
        "numa",
    ),
    "lora_path": Parameter(
        Form("paths with commas", _paths), "none", "LoRA adapters (GGUF) that change the model", "lora_path"
    ),
    "lora_scale": Parameter(
        Form("numbers with commas", _numbers),
        "1",
        "how strongly the adapters act: one number for all, or one each",
        "lora_scale",
    ),
    "mmproj": Parameter(PATH, "none", "the projector (GGUF) through which the model sees or hears", "mmproj.path"),
    "mmproj_offload": Parameter(BOOLEAN, "true", "the projector on the GPU, if there is one", "mmproj_use_gpu"),
    "warmup": Parameter(BOOLEAN, "true", "one empty run before the first request", "warmup"),
    # a smaller model that guesses ahead
    "model_draft": Parameter(
        PATH,
        "none",
        "a small model (GGUF) with the same vocabulary, which guesses ahead; the model only checks it",
        "speculative.draft.mparams.path",
    ),
    "draft_max": Parameter(_count(1, 512), "3", "the most tokens guessed at a time", "speculative.draft.n_max"),
    "draft_min": Parameter(_count(0, 512), "0", "fewer guessed tokens are not used", "speculative.draft.n_min"),
    "draft_p_min": Parameter(
        number(0), "0", "it guesses on as long as it is that sure, from 0 to 1", "speculative.draft.p_min"
    ),
    "n_gpu_layers_draft": Parameter(
        _count(-1), "`n_gpu_layers`", "layers of the small model on GPUs", "speculative.draft.n_gpu_layers"
    ),
    # the context
    "n_ctx": Parameter(
        _count(0),
        "4096, or what the model was trained for if less",
        "context **of each slot** in tokens; 0: what the model was trained for, which is also the most",
        "n_ctx",
    ),
    "n_batch": Parameter(_count(1), "2048", "tokens of prompts that are read in one step", "n_batch"),
    "n_ubatch": Parameter(
        _count(1), "512; `n_batch` with `embedding`", "how many of these are computed at once", "n_ubatch"
    ),
    "n_threads": Parameter(
        _count(1, 512),
        "`--cpus_per_worker` from 1 on, else the worker's share of the cores",
        "threads that make tokens",
        "cpuparams.n_threads",
    ),
    "n_threads_batch": Parameter(
        _count(1, 512), "`n_threads`", "threads that read prompts", "cpuparams_batch.n_threads"
    ),
    "n_keep": Parameter(_count(-1), "0", "tokens of the prompt that `ctx_shift` keeps; -1: all of them", "n_keep"),
    "ctx_shift": Parameter(
        BOOLEAN, "false", "when the context is full, drop its older half and go on instead of ending", "ctx_shift"
    ),
    "flash_attn": Parameter(_FLASH, "auto", "flash attention: less memory, and mostly quicker", "flash_attn_type"),
    "rope_scaling_type": Parameter(
        _choice(none=0, linear=1, yarn=2, longrope=3), _MODELS, "how positions are scaled", "rope_scaling_type"
    ),
    "rope_freq_base": Parameter(number(0), _MODELS, "base frequency of RoPE", "rope_freq_base"),
    "rope_freq_scale": Parameter(number(0), _MODELS, "factor of RoPE's frequencies", "rope_freq_scale"),
    "yarn_ext_factor": Parameter(number(), _MODELS, "YaRN: how much is extrapolated", "yarn_ext_factor"),
    "yarn_attn_factor": Parameter(number(), _MODELS, "YaRN: factor of attention", "yarn_attn_factor"),
    "yarn_beta_fast": Parameter(number(), _MODELS, "YaRN: where interpolation begins", "yarn_beta_fast"),
    "yarn_beta_slow": Parameter(number(), _MODELS, "YaRN: where interpolation is complete", "yarn_beta_slow"),
    "yarn_orig_ctx": Parameter(_count(0), _MODELS, "YaRN: the context before it was stretched", "yarn_orig_ctx"),
    # its cache
    "offload_kqv": Parameter(Form(BOOLEAN.said, _not), "true", "keys and values on the GPU", "no_kv_offload"),
    "type_k": Parameter(_KV_TYPE, "f16", "data type of the cached keys; smaller ones take less memory", "cache_type_k"),
    "type_v": Parameter(
        _KV_TYPE,
        "f16",
        "data type of the cached values; others than f32, f16 and bf16 need `flash_attn`",
        "cache_type_v",
    ),
    "kv_unified": Parameter(BOOLEAN, "false", "one cache for all slots instead of one each", "kv_unified"),
    "swa_full": Parameter(
        BOOLEAN, "false", "the whole context in the cache of layers that only look at a window of it", "swa_full"
    ),
    "cache_prompt": Parameter(
        BOOLEAN, "true", "read only what a slot's last prompt did not begin with", "cache_prompt"
    ),
    "cache_reuse": Parameter(
        _count(0), "0", "also reuse later pieces of at least so many equal tokens; 0: none", "n_cache_reuse"
    ),
    "cache_ram": Parameter(
        _count(-1),
        "1024 (llama.cpp: 8192)",
        "MiB for the states of earlier prompts; -1: no limit, 0: none",
        "cache_ram_mib",
    ),
    # what it answers
    "embedding": Parameter(BOOLEAN, "false", "an instance for embeddings", "embedding"),
    "reranking": Parameter(BOOLEAN, "false", "an instance that ranks documents", "reranking"),
    "pooling_type": Parameter(
        _choice(none=POOLING_NONE, mean=1, cls=2, last=3, rank=POOLING_RANK),
        "the model's own, else `mean`",
        "how a text's one vector comes of its tokens'",
        "pooling_type",
    ),
    "chat_template": Parameter(
        _TEMPLATE,
        _MODELS,
        f"Jinja template that makes a prompt of messages; `{NO_TEMPLATE}`: completions only",
        "chat_template",
    ),
    "reasoning_format": Parameter(
        _choice(none=0, auto=1, deepseek_legacy=2, deepseek=3),
        "deepseek",
        "where thoughts go: `deepseek`: into `reasoning_content`; `none`: they stay in the text",
        "reasoning_format",
    ),
    "n_predict": Parameter(_count(-1), "-1", "most tokens of an answer that names no limit; -1: none", "n_predict"),
    "seed": Parameter(
        Form(f"whole number from -1 to {_RANDOM_SEED}", _seed),
        "-1",
        "seed of requests that name none; -1: another each time",
        "sampling.seed",
    ),
    "last_n_tokens_size": Parameter(
        _count(-1), "64", "how many of the last tokens penalties for repetition look at", "sampling.penalty_last_n"
    ),
    "verbose": Parameter(
        Form(BOOLEAN.said, _verbosity), "true", "the log also says what it does, not only warnings", "verbosity"
    ),
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
