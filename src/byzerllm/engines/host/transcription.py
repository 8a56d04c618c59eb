"""Speech into text, by transformers' pipeline (Whisper, and the recognisers that it has beside it)."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from typing import Any

from byzerllm.engines.host import loading
from byzerllm.engines.host.backend import Recording, Segment, Transcript
from byzerllm.engines.host.batches import OneThread
from byzerllm.errors import InvalidInput

LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000  # samples a second, of the files that there are
MAX_SECONDS = 2 * 3600  # of sound, at 48,000 samples a second; of more samples it is less
MAX_FRAMES = MAX_SECONDS * 48_000
BLOCK = 2**16  # frames that are read at a time: a few bytes may hold hours of silence in many channels


class PipelineTranscriber:
    """A ``Transcriber``."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._rate: int = pipeline.feature_extractor.sampling_rate
        self._whisper = pipeline.type == "seq2seq_whisper"
        self._thread = OneThread()

    async def transcribe(self, recording: Recording) -> Transcript:
        if not self._whisper and (recording.language or recording.prompt or recording.timestamps):
            raise InvalidInput("'language', 'prompt' and times are Whisper's; this model has none.", param="language")
        stop = threading.Event()
        try:
            return await self._thread.run(self._transcribe, recording, stop)
        finally:
            stop.set()

    def _transcribe(self, recording: Recording, stop: threading.Event) -> Transcript:
        samples = self.samples(recording.data)
        duration = len(samples) / self._rate
        more = {"return_timestamps": recording.timestamps or duration > 30} if self._whisper else {}
        try:
            found = self._pipeline(
                {"raw": samples, "sampling_rate": self._rate}, generate_kwargs=self._options(recording, stop), **more
            )
        except ValueError as error:  # a language that it does not know, times that it cannot give
            raise InvalidInput(f"The model refused: {error}") from None
        chunks = found.get("chunks", ())
        segments = [
            Segment(chunk["timestamp"][0] or 0.0, chunk["timestamp"][1] or duration, chunk["text"]) for chunk in chunks
        ]
        return Transcript(found["text"].strip(), segments, recording.language, duration)

    def _options(self, recording: Recording, stop: threading.Event) -> dict[str, Any]:
        if not self._pipeline.model.can_generate():
            return {}
        options: dict[str, Any] = {"stopping_criteria": [_Stop(stop)]}
        if recording.temperature:
            options |= {"do_sample": True, "temperature": recording.temperature}
        if recording.language:
            options["language"] = recording.language
        if recording.prompt:
            options["prompt_ids"] = self._pipeline.tokenizer.get_prompt_ids(recording.prompt, return_tensors="pt")
        return options

    def samples(self, data: bytes) -> Any:
        """The samples of a sound file, one channel, at the model's rate.

        Raises:
            InvalidInput: it is none that can be read, or longer than can be worked on.
        """
        import numpy as np
        import soundfile
        from scipy.signal import resample_poly

        try:
            with soundfile.SoundFile(io.BytesIO(data)) as file:
                rate = file.samplerate
                check_size(rate, file.frames)
                blocks = file.blocks(BLOCK, dtype="float32", always_2d=True)
                mono = np.concatenate([np.zeros(0, np.float32), *(block.mean(axis=1) for block in blocks)])
        except soundfile.LibsndfileError as error:
            raise InvalidInput(
                f"'file' cannot be read as sound: {error}.", hint="Send WAV, FLAC, MP3 or Ogg.", param="file"
            ) from None
        if not len(mono):
            raise InvalidInput("'file' holds no sound.", param="file")
        if rate != self._rate:
            mono = resample_poly(mono, self._rate, rate)
        return mono.astype(np.float32)


def check_size(rate: int, frames: int) -> None:
    """Raises InvalidInput: the numbers in a file's head are such that reading it would take all memory."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise InvalidInput(
            f"'file' has {rate} samples a second; it must be {LOWEST_RATE} to {HIGHEST_RATE}.", param="file"
        )
    most = min(MAX_SECONDS * rate, MAX_FRAMES)
    if frames > most:
        raise InvalidInput(
            f"'file' holds {frames / rate:.0f} seconds of sound; at this rate {most // rate} are possible.",
            hint="Send it in parts.",
            param="file",
        )


class _Stop:
    """Ends the generation when nobody waits for it any more."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, ids: Any, _scores: Any, **_more: Any) -> Any:
        import torch

        return torch.full((len(ids),), self._stop.is_set(), device=ids.device, dtype=torch.bool)


def load(path: str, values: Mapping[str, Any], slots: int) -> PipelineTranscriber:
    """Load a model for speech recognition and let it hear one second of silence."""
    import numpy as np
    from transformers import pipeline

    loading.show_progress()
    loading.phase("loading weights")
    device = loading.device_of(values)
    arguments = loading.encoder_arguments(path, values, device)
    found = pipeline("automatic-speech-recognition", path, device=device, **loading.for_pipeline(arguments, values))
    loading.phase("warming up")
    rate = found.feature_extractor.sampling_rate
    found({"raw": np.zeros(rate, np.float32), "sampling_rate": rate})
    return PipelineTranscriber(found)
