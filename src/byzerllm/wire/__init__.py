"""Wire formats by name. A new format is one file here and one line in ``WIRES`` or ``TRANSLATORS``."""

from __future__ import annotations

import functools
from importlib import import_module

from byzerllm.errors import InvalidInput
from byzerllm.wire.base import Translator, Wire
from byzerllm.wire.openai import OpenAIWire

WIRES: dict[str, Wire] = {"openai": OpenAIWire()}

# Format -> module and class, imported when an instance needs it.
TRANSLATORS: dict[str, tuple[str, str]] = {
    "anthropic": ("byzerllm.wire.anthropic", "Anthropic"),
    "gemini": ("byzerllm.wire.gemini", "Gemini"),
    "dashscope": ("byzerllm.wire.dashscope", "DashScope"),
    "bedrock": ("byzerllm.wire.bedrock", "BedrockConverse"),
    "minimax_pro": ("byzerllm.wire.minimax_pro", "MiniMaxPro"),
    "baidu_v1": ("byzerllm.wire.baidu_v1", "BaiduV1"),
    "pangu": ("byzerllm.wire.pangu", "Pangu"),
    "spark": ("byzerllm.wire.spark", "Spark"),
}


def check_wire(name: str) -> None:
    """Refuse a name that no format has.

    Raises:
        InvalidInput: the known names are listed.
    """
    if name not in WIRES and name not in TRANSLATORS:
        raise InvalidInput(f"Unknown wire format {name!r}. Known: {', '.join(sorted((*WIRES, *TRANSLATORS)))}.")


@functools.cache
def translator(name: str) -> Translator:
    """The translated format of that name."""
    module, cls = TRANSLATORS[name]
    found: Translator = getattr(import_module(module), cls)()
    return found
