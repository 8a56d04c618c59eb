"""The engines there are, by the name that ``--infer_backend`` takes. One is imported only when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from byzerllm.engines.base import Engine

_CLASSES = {
    "deepspeed": "byzerllm.engines.deepspeed:DeepSpeed",
    "funasr": "byzerllm.engines.funasr:FunAsr",
    "llama_cpp": "byzerllm.engines.llama_cpp:LlamaCpp",
    "transformers": "byzerllm.engines.transformers:Transformers",
    "vllm": "byzerllm.engines.vllm:Vllm",
}


def names() -> tuple[str, ...]:
    """The names of the engines, installed or not."""
    return tuple(sorted(_CLASSES))


def engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        InvalidInput: there is none of that name; the nearest one is named.
    """
    if name not in _CLASSES:
        # The processes of the engines live in this package too and are to stay small: they need none of this.
        from byzerllm.spec import unknown

        raise unknown("--infer_backend", name, _CLASSES, param="infer_backend")
    module, _, cls = _CLASSES[name].partition(":")
    return cast("Engine", getattr(import_module(module), cls)())
