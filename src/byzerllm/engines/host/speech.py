"""Text into speech, by transformers' pipeline (VITS, Bark, ...)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from byzerllm.engines.host import loading
from byzerllm.engines.host.backend import Sound
from byzerllm.engines.host.batches import StoppableThread
from byzerllm.errors import InvalidInput


class PipelineSpeaker:
    """A ``Speaker``."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._thread = StoppableThread(pipeline.model)

    async def speak(self, text: str, voice: str | None, speed: float) -> Sound:
        if voice not in (None, "", "default"):
            raise InvalidInput(f"'voice' {voice!r} is not there: this model has one voice, default.", param="voice")
        if speed != 1.0 and not hasattr(self._pipeline.model, "speaking_rate"):
            raise InvalidInput("'speed' can only be 1 with this model.", param="speed")
        return await self._thread.run(self._speak, text, speed)

    def _speak(self, text: str, speed: float) -> Sound:
        import numpy as np

        if hasattr(self._pipeline.model, "speaking_rate"):
            self._pipeline.model.speaking_rate = self._pipeline.model.config.speaking_rate * speed
        ids = self._pipeline.preprocess(text).get("input_ids")
        if ids is not None and not ids.numel():
            raise InvalidInput("'input' has nothing in it that this model can say.", param="input")
        found = self._pipeline(text)
        samples = np.asarray(found["audio"], np.float32).reshape(-1)
        return Sound(samples.astype("<f4").tobytes(), int(found["sampling_rate"]))


def load(path: str, values: Mapping[str, Any], slots: int) -> PipelineSpeaker:
    """Load a model that speaks."""
    from transformers import pipeline

    loading.show_progress()
    loading.phase("loading weights")
    device = loading.device_of(values)
    found = pipeline("text-to-audio", path, **loading.for_pipeline(path, values, device))
    loading.phase("warming up")
    found("a")
    return PipelineSpeaker(found)
