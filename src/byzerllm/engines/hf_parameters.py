"""The parameters of the engines that run on transformers, with or without ``backend.`` in front."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from byzerllm.engines.hf_folder import Kind
from byzerllm.engines.parameters import BOOLEAN, PATH, TEXT, Form, Parameter, choice, number, read_path, whole
from byzerllm.errors import InvalidInput
from byzerllm.spec import unknown

PREFIX = "backend."

_DTYPES = choice("auto", "bfloat16", "float16", "float32")


def _dtype(name: str, text: str) -> str:
    short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
    word = text.strip().lower().removeprefix("torch.")
    found: str = _DTYPES.read(name, short.get(word, word))
    return found


def _bits(name: str, text: str) -> int:
    """4 or 8; the older tool took ``true`` for 8, and ``false`` for none."""
    word = text.strip().lower()
    bits = {"4": 4, "8": 8, "true": 8, "false": 0}.get(word)
    if bits is None:
        raise InvalidInput(f"{name}={text!r} must be 4 or 8, the bits of a weight.", param=name)
    return bits


def _template(name: str, text: str) -> str:
    return text if "{" in text else read_path(name, text)


TRANSFORMERS: Mapping[str, Parameter] = {
    "dtype": Parameter(
        Form(_DTYPES.said, _dtype),
        "`auto`: as the weights were saved, but float32 for float16 on a CPU",
        "data type of the weights and of what is computed",
    ),
    "max_model_len": Parameter(
        whole(8),
        "the model's own context, or as much of it as there is memory for",
        "the most tokens that a prompt and its answer may have together",
    ),
    "trust_remote_code": Parameter(
        BOOLEAN, "`false`: such a model is refused", "run the Python code that is in the model's folder"
    ),
    "chat_template": Parameter(
        Form("path, or the template itself", _template),
        "the model's own",
        "Jinja template that makes a prompt of messages",
    ),
    "attn_implementation": Parameter(
        TEXT,
        "what transformers chooses",
        "how attention is computed, by transformers' names: `sdpa`, `eager`, `flash_attention_2`",
    ),
    "device": Parameter(choice("cpu", "cuda", "mps"), "a GPU where the worker has one", "where the model runs"),
    "quantization": Parameter(
        Form("4, 8", _bits),
        "none",
        "load the weights in so many bits, with bitsandbytes: less memory, some quality lost",
    ),
    "llm_int8_threshold": Parameter(
        number(0), "6", "for `quantization=8`: activations beyond it are computed in 16 bits"
    ),
    "lora_path": Parameter(PATH, "none", "folder of a LoRA adapter, which is merged into the weights"),
}
_WEIGHTS = ("dtype", "device")
_LIBRARY = (*_WEIGHTS, "trust_remote_code", "attn_implementation", "quantization", "llm_int8_threshold")
# Which of them each kind of model has a use for.
OF_KIND: Mapping[Kind, Collection[str]] = {
    Kind.CAUSAL_LM: TRANSFORMERS,
    Kind.MULTIMODAL_CHAT: TRANSFORMERS,
    Kind.EMBEDDING: (*_LIBRARY, "max_model_len"),
    Kind.RERANKER: (*_LIBRARY, "max_model_len"),
    Kind.TRANSCRIPTION: _LIBRARY,
    Kind.SPEECH: _LIBRARY,
    Kind.IMAGE: _WEIGHTS,
}
DEEPSPEED: Mapping[str, Parameter] = {
    **{name: TRANSFORMERS[name] for name in ("dtype", "max_model_len", "trust_remote_code", "chat_template")},
    "tp_size": Parameter(
        whole(1),
        "the whole GPUs of a worker, 1 without a GPU",
        "ranks that share the model, each a process with its part of every matrix",
    ),
    "replace_with_kernel_inject": Parameter(
        BOOLEAN,
        "false",
        "compute with DeepSpeed's own kernels, for architectures that have them, on one GPU; one request at a time",
    ),
}
# As the older tool spelt them, or other engines do.
ALIASES = {
    "quatization": "quantization",
    "torch_dtype": "dtype",
    "mp_size": "tp_size",
    "kernel_inject": "replace_with_kernel_inject",
}
# Parameters of the older tool that have no use any more.
WITHOUT_EFFECT = {
    "use_cache": "keys and values are always kept",
    "message_format": "requests are always messages",
    "longContextMode": "the model's own config.json says how positions are scaled",
}


def read_all(
    engine: str, table: Mapping[str, Parameter], params: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """The values by their names without prefix, and warnings.

    Raises:
        InvalidInput: an unknown name (the nearest is named), one that is given twice, or a wrong value.
    """
    values: dict[str, Any] = {}
    warnings: list[str] = []
    for param, text in params.items():
        bare = param.removeprefix(PREFIX)
        if bare in WITHOUT_EFFECT:
            warnings.append(f"{param} has no effect: {WITHOUT_EFFECT[bare]}.")
            continue
        name = bare.replace("-", "_")
        name = ALIASES.get(name, name)
        if name not in table:
            names = [PREFIX + known if param.startswith(PREFIX) else known for known in table]
            raise unknown(f"{engine} parameter", param, names, param=param)
        if name in values:
            raise InvalidInput(f"{PREFIX}{name} is given twice, once as {param}.", param=param)
        values[name] = table[name].read(param, text)
    return values, warnings


def check_kind(kind: Kind, values: Mapping[str, Any]) -> None:
    """Raises InvalidInput: a parameter has no meaning for this kind of model, or without another one."""
    known = OF_KIND[kind]
    for name in values:
        if name not in known:
            listed = ", ".join(PREFIX + one for one in TRANSFORMERS if one in known)
            raise InvalidInput(
                f"{PREFIX}{name} has no meaning for a model of the kind {kind.value}.",
                hint=f"It takes {listed}.",
                param=PREFIX + name,
            )
    if "llm_int8_threshold" in values and values.get("quantization") != 8:
        raise InvalidInput(
            f"{PREFIX}llm_int8_threshold has no meaning without {PREFIX}quantization=8.",
            hint=f"Add {PREFIX}quantization=8, or leave it out.",
            param=f"{PREFIX}llm_int8_threshold",
        )
