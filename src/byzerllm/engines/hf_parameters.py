"""The parameters of the engines that run on transformers, with or without ``backend.`` in front."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from byzerllm.engines.hf_folder import Kind
from byzerllm.errors import InvalidInput
from byzerllm.spec import parse_bool, parse_float, parse_int, unknown

PREFIX = "backend."

Reader = Callable[[str, str], Any]


def _choice(*words: str) -> Reader:
    def read(name: str, text: str) -> str:
        word = text.strip().lower().removeprefix("torch.")
        if word not in words:
            raise InvalidInput(f"{name}={text!r} must be one of {', '.join(words)}.", param=name)
        return word

    return read


def _dtype(name: str, text: str) -> str:
    short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
    word = text.strip().lower().removeprefix("torch.")
    found: str = _choice("auto", "bfloat16", "float16", "float32")(name, short.get(word, word))
    return found


def _bits(name: str, text: str) -> int:
    """4 or 8; the older tool took ``true`` for 8, and ``false`` for none."""
    word = text.strip().lower()
    bits = {"4": 4, "8": 8, "true": 8, "false": 0}.get(word)
    if bits is None:
        raise InvalidInput(f"{name}={text!r} must be 4 or 8, the bits of a weight.", param=name)
    return bits


def _path(name: str, text: str) -> str:
    if not text:
        raise InvalidInput(f"{name} is empty.", param=name)
    return str(Path(text).expanduser())


def _template(name: str, text: str) -> str:
    return text if "{" in text else _path(name, text)


def _text(name: str, text: str) -> str:
    if not text:
        raise InvalidInput(f"{name} is empty.", param=name)
    return text


def _whole(low: int) -> Reader:
    return lambda name, text: parse_int(name, text, low)


def _number(low: float) -> Reader:
    return lambda name, text: parse_float(name, text, low)


TRANSFORMERS: Mapping[str, Reader] = {
    "dtype": _dtype,
    "max_model_len": _whole(8),
    "trust_remote_code": parse_bool,
    "chat_template": _template,
    "attn_implementation": _text,
    "device": _choice("cpu", "cuda", "mps"),
    "quantization": _bits,
    "llm_int8_threshold": _number(0),
    "lora_path": _path,
}
_WEIGHTS = ("dtype", "device")
_LIBRARY = (*_WEIGHTS, "trust_remote_code", "attn_implementation", "quantization", "llm_int8_threshold")
# Which of them each kind of model has a use for.
OF_KIND: Mapping[Kind, Collection[str]] = {
    Kind.CAUSAL_LM: TRANSFORMERS,
    Kind.VISION_CHAT: TRANSFORMERS,
    Kind.EMBEDDING: (*_LIBRARY, "max_model_len"),
    Kind.RERANKER: (*_LIBRARY, "max_model_len"),
    Kind.TRANSCRIPTION: _LIBRARY,
    Kind.SPEECH: _LIBRARY,
    Kind.IMAGE: _WEIGHTS,
}
DEEPSPEED: Mapping[str, Reader] = {
    **{name: TRANSFORMERS[name] for name in ("dtype", "max_model_len", "trust_remote_code", "chat_template")},
    "tp_size": _whole(1),
    "replace_with_kernel_inject": parse_bool,
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


def read_all(engine: str, table: Mapping[str, Reader], params: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
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
        values[name] = table[name](param, text)
    return values, warnings


def check_kind(kind: Kind, values: Mapping[str, Any]) -> None:
    """Raises InvalidInput: a parameter has no meaning for this kind of model."""
    known = OF_KIND[kind]
    for name in values:
        if name not in known:
            listed = ", ".join(PREFIX + one for one in TRANSFORMERS if one in known)
            raise InvalidInput(
                f"{PREFIX}{name} has no meaning for a model of the kind {kind.value}.",
                hint=f"It takes {listed}.",
                param=PREFIX + name,
            )
