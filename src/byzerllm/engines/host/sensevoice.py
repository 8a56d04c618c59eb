"""Speech into text by SenseVoice, which funasr runs: the words, and emoji for moods and other sounds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from byzerllm.engines.host import loading
from byzerllm.engines.host.backend import Recording, Transcript
from byzerllm.engines.host.batches import OneThread, StoppableThread
from byzerllm.engines.host.sounds import at_least, pieces
from byzerllm.errors import InvalidInput

LANGUAGES = ("auto", "zh", "yue", "en", "ja", "ko", "nospeech")
RATE = 16_000  # samples a second
LONGEST = 300  # seconds that the model reads at once: memory and time grow with the square
SHORTEST = RATE // 10  # samples: of fewer funasr makes no spectrum, and fails
VAD_PREFIX = "vad_kwargs."
_AT_REQUEST = ("use_itn", "merge_vad", "merge_length_s", "batch_size_s")


class SenseVoice:
    """A ``Transcriber``. ``found`` is funasr's model, ``options`` what it is told with each recording."""

    def __init__(self, found: Any, options: Mapping[str, Any]) -> None:
        self._found = found
        self._options = options
        self._cuts = found.vad_model is not None
        self._reading = OneThread()
        self._thread = StoppableThread(found.model, *([found.vad_model] if self._cuts else []))

    async def transcribe(self, recording: Recording) -> Transcript:
        if recording.language not in (None, *LANGUAGES):
            raise InvalidInput(
                f"'language' is {recording.language!r} and must be one of {', '.join(LANGUAGES)}.", param="language"
            )
        if recording.prompt:
            raise InvalidInput(
                "'prompt' is not supported by this model: it takes no words in advance.",
                hint="Leave it out; with byzerllm query, leave --query out beside --audio.",
                param="prompt",
            )
        if recording.temperature:
            raise InvalidInput("'temperature' can only be 0 with this model.", param="temperature")
        if recording.timestamps or recording.words:
            raise InvalidInput(
                "'response_format' can only be json or text: this model tells no times.", param="response_format"
            )
        sound = await self._reading.run_joined(pieces(recording.data, RATE))
        duration = len(sound) / RATE
        if duration > LONGEST and not self._cuts:
            raise InvalidInput(
                f"'file' holds {duration:.0f} seconds of sound; {LONGEST} are possible without vad_model.",
                hint="Send it in parts, or deploy with vad_model=FOLDER, which cuts it where nobody speaks.",
                param="file",
            )
        written = await self._thread.run(self.text, sound, recording.language or "auto")
        return Transcript(written, [], recording.language, duration)

    def text(self, sound: Any, language: str) -> str:
        """What is said in samples at ``RATE``."""
        from funasr.utils.postprocess_utils import rich_transcription_postprocess

        answers = self._found.generate(at_least(SHORTEST, sound), language=language, **self._options)
        written: str = rich_transcription_postprocess(answers[0]["text"])
        return written


def load(path: str, values: Mapping[str, Any], slots: int) -> SenseVoice:
    """Load the model, and the one that finds speech if there is one, and let them hear one second of silence.

    Raises:
        ValueError: the file of the weights lacks some of the model.
    """
    import numpy as np
    import torch
    from funasr import AutoModel
    from funasr.register import tables

    logging.disable(logging.INFO)
    loading.phase("loading weights")
    # funasr calls it if it is there; by itself it leaves at random what the file lacks.
    tables.model_classes["SenseVoiceSmall"].on_pretrained_model_loaded = _require_all
    # The model's own config.yaml could make funasr fetch other models, install packages and run the folder's code; what
    # is given here wins.
    closed = {"trust_remote_code": False, "disable_update": True, "hub": "ms"}
    own = {"device": loading.device_of(values), "ncpu": torch.get_num_threads(), "ignore_init_mismatch": False}
    vad = {name.removeprefix(VAD_PREFIX): value for name, value in values.items() if name.startswith(VAD_PREFIX)}
    found = AutoModel(
        model=path,
        vad_model=values.get("vad_model"),
        vad_kwargs={**vad, **closed, **own},
        punc_model=None,
        spk_model=None,
        disable_pbar=True,
        **closed,
        **own,
    )
    loading.phase("warming up")
    model = SenseVoice(found, {name: values[name] for name in _AT_REQUEST})
    model.text(np.zeros(RATE, np.float32), "auto")
    return model


def _require_all(model: Any, loaded: frozenset[str]) -> None:
    """Raises ValueError: some of the model was not in the file of the weights."""
    missing = sorted(model.state_dict().keys() - loaded)
    if missing:
        raise ValueError(f"the weights lack {len(missing)} tensors of the model, the first is {missing[0]}")
