"""Wire formats by name. A new format is one file here and one line in one of the tables."""

from __future__ import annotations

import functools
from importlib import import_module

from byzerllm.errors import InvalidInput
from byzerllm.wire.base import Translator, Wire
from byzerllm.wire.engine import EngineWire
from byzerllm.wire.llama_cpp import LlamaCppWire
from byzerllm.wire.media import MediaFormat
from byzerllm.wire.openai import OpenAIWire
from byzerllm.wire.vllm import VllmFetchingWire, VllmWire

WIRES: dict[str, Wire] = {"openai": OpenAIWire()}

# What the servers of engines speak; no vendor's table can name these.
ENGINE_WIRES: dict[str, EngineWire] = {
    wire.name: wire for wire in (EngineWire(), LlamaCppWire(), VllmWire(), VllmFetchingWire())
}

# Format -> module and class, imported when an instance needs it.
TRANSLATORS: dict[str, tuple[str, str]] = {
    "openai_lenient": ("byzerllm.wire.openai_lenient", "OpenAILenient"),
    "anthropic": ("byzerllm.wire.anthropic", "Anthropic"),
    "responses": ("byzerllm.wire.responses", "Responses"),
    "gemini": ("byzerllm.wire.gemini", "Gemini"),
    "dashscope": ("byzerllm.wire.dashscope", "DashScope"),
    "bedrock": ("byzerllm.wire.bedrock", "BedrockConverse"),
    "minimax_pro": ("byzerllm.wire.minimax_pro", "MiniMaxPro"),
    "baidu_v1": ("byzerllm.wire.baidu_v1", "BaiduV1"),
    "pangu": ("byzerllm.wire.pangu", "Pangu"),
    "spark": ("byzerllm.wire.spark", "Spark"),
}

# The same for speech and images.
MEDIA: dict[str, tuple[str, str]] = {
    "speech_azure": ("byzerllm.wire.speech_azure", "AzureSpeech"),
    "speech_volcengine": ("byzerllm.wire.speech_volcengine", "VolcengineSpeech"),
    "speech_volcengine_v3": ("byzerllm.wire.speech_volcengine", "VolcengineSpeechV3"),
    "speech_minimax": ("byzerllm.wire.speech_minimax", "MiniMaxSpeech"),
    "speech_dashscope": ("byzerllm.wire.speech_dashscope", "DashScopeSpeech"),
    "images_siliconflow": ("byzerllm.wire.images_siliconflow", "SiliconFlowImages"),
}


def check_wire(name: str) -> None:
    """Refuse a name that no format has.

    Raises:
        InvalidInput: the known names are listed.
    """
    known = sorted((*WIRES, *TRANSLATORS, *MEDIA))
    if name not in known:
        raise InvalidInput(f"Unknown wire format {name!r}. Known: {', '.join(known)}.")


def known_format(name: str) -> Wire | Translator | MediaFormat:
    """The format of that name, of whatever kind."""
    return WIRES.get(name) or (media_format(name) if name in MEDIA else translator(name))


@functools.cache
def translator(name: str) -> Translator:
    """The translated format of that name."""
    module, cls = TRANSLATORS[name]
    found: Translator = getattr(import_module(module), cls)()
    return found


@functools.cache
def media_format(name: str) -> MediaFormat:
    """The format for speech or images of that name."""
    module, cls = MEDIA[name]
    found: MediaFormat = getattr(import_module(module), cls)()
    return found
