"""Text into speech, by transformers' pipeline (VITS, Bark, ...)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from byzerllm.engines.host import loading
from byzerllm.engines.host.backend import Sound
from byzerllm.engines.host.batches import OneThread
from byzerllm.errors import InvalidInput


class _Cancelled(Exception):
    """Nobody waits for the sound any more."""


class PipelineSpeaker:
    """A ``Speaker``."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._thread = OneThread()
        self._stop = threading.Event()  # that of the request under way
        for module in pipeline.model.modules():
            module.register_forward_pre_hook(self._check)

    async def speak(self, text: str, voice: str | None, speed: float) -> Sound:
        if voice not in (None, "", "default"):
            raise InvalidInput(f"'voice' {voice!r} is not there: this model has one voice, default.", param="voice")
        if speed != 1.0 and not hasattr(self._pipeline.model, "speaking_rate"):
            raise InvalidInput("'speed' can only be 1 with this model.", param="speed")
        stop = threading.Event()
        try:
            return await self._thread.run(self._speak, text, speed, stop)
        finally:
            stop.set()

    def _check(self, _module: Any, _inputs: Any) -> None:
        """Before each part of the model: few models that speak can be stopped in another way."""
        if self._stop.is_set():
            raise _Cancelled

    def _speak(self, text: str, speed: float, stop: threading.Event) -> Sound:
        import numpy as np

        self._stop = stop
        if hasattr(self._pipeline.model, "speaking_rate"):
            self._pipeline.model.speaking_rate = self._pipeline.model.config.speaking_rate * speed
        found = self._pipeline(text)
        samples = np.asarray(found["audio"], np.float32).reshape(-1)
        return Sound(samples.astype("<f4").tobytes(), int(found["sampling_rate"]))


def load(path: str, values: Mapping[str, Any], slots: int) -> PipelineSpeaker:
    """Load a model that speaks."""
    from transformers import pipeline

    loading.show_progress()
    loading.phase("loading weights")
    device = loading.device_of(values)
    arguments = loading.encoder_arguments(path, values, device)
    found = pipeline("text-to-audio", path, device=device, **loading.for_pipeline(arguments, values))
    loading.phase("warming up")
    found("a")
    return PipelineSpeaker(found)
