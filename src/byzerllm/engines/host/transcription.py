"""Speech into text, by transformers' pipeline (Whisper, and the recognisers that it has beside it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from byzerllm.engines.host import loading, whisper
from byzerllm.engines.host.backend import Recording, Segment, Transcript
from byzerllm.engines.host.batches import OneThread, StoppableThread
from byzerllm.engines.host.sounds import MAX_SECONDS, at_least, pieces
from byzerllm.errors import InvalidInput

WINDOW = whisper.WINDOW  # seconds
SHORTEST = 0.2  # seconds: of less other models than Whisper make nothing, and fail
LONGEST = 600  # seconds, of a model that reads all at once: memory and time grow with the square


class PipelineTranscriber:
    """A ``Transcriber``. Sounds are read beside the model, several of them in turns."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._rate: int = pipeline.feature_extractor.sampling_rate
        self._whisper = pipeline.type == "seq2seq_whisper"
        self._in_windows = pipeline.type in ("ctc", "ctc_with_lm")
        self._longest = MAX_SECONDS if self._whisper or self._in_windows else LONGEST
        self._aligned = False
        if self._whisper:
            self._aligned = bool(getattr(pipeline.model.generation_config, "alignment_heads", None))
            whisper.mend(pipeline.model)
        self._reading = OneThread()
        self._thread = StoppableThread(pipeline.model)

    async def transcribe(self, recording: Recording) -> Transcript:
        timed = recording.timestamps or recording.words
        if not self._whisper and (recording.language or recording.prompt or timed):
            raise InvalidInput("'language', 'prompt' and times are Whisper's; this model has none.", param="language")
        if recording.words and not self._aligned:
            raise InvalidInput(
                "This model cannot tell the times of words: its generation_config.json has no 'alignment_heads'.",
                hint="Ask for segments.",
                param="timestamp_granularities[]",
            )
        sound = await self._reading.run_joined(pieces(recording.data, self._rate, longest=self._longest))
        duration = len(sound) / self._rate
        if self._whisper and duration > WINDOW:
            sound = await self._reading.run_joined(whisper.features(self._pipeline.feature_extractor, sound))
        return await self._thread.run(self.write_down, sound, duration, recording)

    def write_down(self, sound: Any, duration: float, recording: Recording) -> Transcript:
        """The transcript of samples, or of the features of a sound that is longer than a window of Whisper's."""
        try:
            if self._whisper:
                return self._heard(self._item(sound), recording, duration)
            windows = {"chunk_length_s": WINDOW} if self._in_windows and duration > WINDOW else {}
            given = {"raw": at_least(int(SHORTEST * self._rate), sound), "sampling_rate": self._rate}
            text = self._pipeline(given, generate_kwargs=self._options(recording), **windows)["text"]
        except ValueError as error:  # a language that it does not know, times that it cannot give
            raise InvalidInput(f"The model refused: {error}") from None
        return Transcript(text.strip(), [], recording.language, duration)

    def _item(self, sound: Any) -> dict[str, Any]:
        """What Whisper reads, as the pipeline has it."""
        import torch

        if sound.ndim == 1:
            (item,) = self._pipeline.preprocess({"raw": sound, "sampling_rate": self._rate})
            return dict(item)
        features = torch.from_numpy(whisper.levelled(sound)).to(self._pipeline.dtype)
        mask = torch.ones(features.shape[::2], dtype=torch.int32)
        return {"is_last": True, "input_features": features, "attention_mask": mask}

    def _heard(self, item: dict[str, Any], recording: Recording, duration: float) -> Transcript:
        """What Whisper writes, read once as a text or as segments and, if they are wanted, once more as words."""
        timed = recording.timestamps or duration > WINDOW
        asked = {"return_timestamps": "word" if recording.words else timed, "return_language": True}
        output = self._pipeline.forward(item, **asked, **self._options(recording))
        language = recording.language or whisper.language_of(output, self._pipeline.tokenizer)
        spoken = whisper.with_language(output)
        found = self._pipeline.postprocess([dict(spoken)], return_timestamps=timed)
        segments = _pieces(found.get("chunks", ()), duration)
        words: list[Segment] = []
        if recording.words:
            words = _pieces(self._pipeline.postprocess([spoken], return_timestamps="word")["chunks"], duration)
        return Transcript(found["text"].strip(), segments, language, duration, words)

    def _options(self, recording: Recording) -> dict[str, Any]:
        model = self._pipeline.model
        if not model.can_generate():
            return {}
        options = whisper.thresholds(model.generation_config) if self._whisper else {}
        if recording.temperature:
            options |= {"do_sample": True, "temperature": recording.temperature}
        if recording.language:
            options["language"] = recording.language
        if recording.prompt:
            ids = whisper.prompt_ids(recording.prompt, self._pipeline.tokenizer, model.config)
            options["prompt_ids"] = ids.to(self._pipeline.device)  # nobody else moves them
        return options


def _pieces(chunks: Sequence[Mapping[str, Any]], duration: float) -> list[Segment]:
    """Segments or words whose times lie in the sound; a last one without an end lasts as long as it."""

    def within(seconds: float) -> float:
        return min(max(seconds, 0.0), duration)

    times = [(chunk["timestamp"][0] or 0.0, chunk["timestamp"][1]) for chunk in chunks]
    return [
        Segment(within(start), duration if end is None else within(end), chunk["text"])
        for (start, end), chunk in zip(times, chunks, strict=True)
    ]


def load(path: str, values: Mapping[str, Any], slots: int) -> PipelineTranscriber:
    """Load a model for speech recognition and let it hear one second of silence."""
    import numpy as np
    from transformers import pipeline

    loading.show_progress()
    loading.phase("loading weights")
    device = loading.device_of(values)
    found = pipeline("automatic-speech-recognition", path, **loading.for_pipeline(path, values, device))
    loading.phase("warming up")
    model = PipelineTranscriber(found)
    model.write_down(np.zeros(found.feature_extractor.sampling_rate, np.float32), 1.0, Recording(b""))
    return model
