"""Speech into text, by transformers' pipeline (Whisper, and the recognisers that it has beside it)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from byzerllm.engines.host import loading
from byzerllm.engines.host.backend import Recording, Segment, Transcript
from byzerllm.engines.host.batches import StoppableThread
from byzerllm.errors import InvalidInput

LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000  # samples a second, of the files that there are
MAX_SECONDS = 2 * 3600  # of sound, at 48,000 samples a second; of more samples it is less
MAX_FRAMES = MAX_SECONDS * 48_000
WINDOW = 30  # seconds that Whisper hears at a time; where one window ends is told by the times that it writes
BLOCK = 2**16  # frames that are read at a time: a few bytes may hold hours of silence in many channels


class PipelineTranscriber:
    """A ``Transcriber``."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._rate: int = pipeline.feature_extractor.sampling_rate
        self._whisper = pipeline.type == "seq2seq_whisper"
        self._aligned = bool(getattr(pipeline.model.generation_config, "alignment_heads", None))
        if self._aligned:
            _drop_attentions(pipeline.model)
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
        return await self._thread.run(self._transcribe, recording)

    def _transcribe(self, recording: Recording) -> Transcript:
        raw = samples(recording.data, self._rate)
        duration = len(raw) / self._rate
        sound = {"raw": raw, "sampling_rate": self._rate}
        try:
            options = self._options(recording)
            if self._whisper:
                return self._heard(sound, recording, duration, options)
            text = self._pipeline(sound, generate_kwargs=options)["text"]
        except ValueError as error:  # a language that it does not know, times that it cannot give
            raise InvalidInput(f"The model refused: {error}") from None
        return Transcript(text.strip(), [], recording.language, duration)

    def _heard(self, sound: Any, recording: Recording, duration: float, options: dict[str, Any]) -> Transcript:
        """What Whisper writes, read once as a text or as segments and, if they are wanted, once more as words."""
        timed = recording.timestamps or duration > WINDOW
        asked = {"return_timestamps": "word" if recording.words else timed, "return_language": True}
        outputs = [self._pipeline.forward(item, **asked, **options) for item in self._pipeline.preprocess(sound)]
        language = recording.language or self._language(outputs[0])
        spoken = [_with_language(one) for one in outputs]
        found = self._pipeline.postprocess([dict(one) for one in spoken], return_timestamps=timed)
        segments = _pieces(found.get("chunks", ()), duration)
        words: list[Segment] = []
        if recording.words:
            words = _pieces(self._pipeline.postprocess(spoken, return_timestamps="word")["chunks"], duration)
        return Transcript(found["text"].strip(), segments, language, duration, words)

    def _language(self, output: Mapping[str, Any]) -> str | None:
        """The code of the language that was heard, None of a model that knows one only."""
        token = output.get("lang_id")
        return None if token is None else self._pipeline.tokenizer.convert_ids_to_tokens(int(token)).strip("<|>")

    def _options(self, recording: Recording) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if not self._pipeline.model.can_generate():
            return options
        if recording.temperature:
            options |= {"do_sample": True, "temperature": recording.temperature}
        if recording.language:
            options["language"] = recording.language
        if recording.prompt:
            options["prompt_ids"] = self._prompt_ids(recording.prompt)
        return options

    def _prompt_ids(self, prompt: str) -> Any:
        """Whisper reads the end of a prompt that is longer than half of what it can write."""
        import torch

        ids = self._pipeline.tokenizer.get_prompt_ids(prompt, return_tensors="pt")
        most = self._pipeline.model.config.max_target_positions // 2 - 1
        # The first one says what they are. Nobody else moves them to the model's device.
        return torch.cat([ids[:1], ids[1:][-most:]]).to(self._pipeline.device)


def samples(data: bytes, wanted: int, *, longest: float = MAX_SECONDS, param: str = "file") -> Any:
    """The samples of a sound file, one channel, ``wanted`` of them a second.

    Raises:
        InvalidInput: it is none that can be read, or longer than ``longest`` seconds; names ``param``.
    """
    import numpy as np
    import soundfile
    from scipy.signal import resample_poly

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            check_size(rate, file.frames, longest, param)
            blocks = file.blocks(BLOCK, dtype="float32", always_2d=True)
            mono = np.concatenate([np.zeros(0, np.float32), *(block.mean(axis=1) for block in blocks)])
    except soundfile.LibsndfileError as error:
        raise InvalidInput(
            f"The sound cannot be read: {error.error_string.rstrip('.')}.",
            hint="Send WAV, FLAC, MP3 or Ogg.",
            param=param,
        ) from None
    if not len(mono):
        raise InvalidInput("The sound is empty.", param=param)
    if rate != wanted:
        mono = resample_poly(mono, wanted, rate)
    return mono.astype(np.float32)


def check_size(rate: int, frames: int, longest: float, param: str) -> None:
    """Raises InvalidInput: the numbers in a file's head are such that reading it would take all memory."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise InvalidInput(
            f"The sound has {rate} samples a second; it must be {LOWEST_RATE} to {HIGHEST_RATE}.", param=param
        )
    most = min(longest * rate, MAX_FRAMES)
    if frames > most:
        raise InvalidInput(
            f"The sound lasts {frames / rate:.1f} seconds; at its rate at most {most / rate:g} are possible.",
            hint="Send it in parts.",
            param=param,
        )


def _with_language(output: dict[str, Any]) -> dict[str, Any]:
    """Whisper's output with the language before its tokens, where it is looked for to tell what a word is. The
    pipeline's own way of putting it there moves the tokens against their times."""
    import torch

    language = output.pop("lang_id", None)
    if language is None:  # the model knows one only
        return output
    output["tokens"] = torch.cat([language[None], output["tokens"]], -1)
    if "token_timestamps" in output:
        output["token_timestamps"] = [torch.cat([torch.zeros(1), times]) for times in output["token_timestamps"]]
    return output


def _pieces(chunks: Sequence[Mapping[str, Any]], duration: float) -> list[Segment]:
    """Segments or words whose times lie in the sound; a last one without an end lasts as long as it."""

    def within(seconds: float) -> float:
        return min(max(seconds, 0.0), duration)

    times = [(chunk["timestamp"][0] or 0.0, chunk["timestamp"][1]) for chunk in chunks]
    return [
        Segment(within(start), duration if end is None else within(end), chunk["text"])
        for (start, end), chunk in zip(times, chunks, strict=True)
    ]


def _drop_attentions(model: Any) -> None:
    """The times of words come from the attentions of each window. transformers keeps them all until the end of the
    sound, gigabytes for each minute, though nothing reads them again; nor the scores, but for a threshold of theirs."""
    extract = model._extract_token_timestamps
    names = ["encoder_attentions", "decoder_attentions", "cross_attentions"]
    if getattr(model.generation_config, "logprob_threshold", None) is None:
        names.append("scores")

    def extract_only(outputs: Any, *positional: Any, **named: Any) -> Any:
        times = extract(outputs, *positional, **named)
        for name in names:
            outputs[name] = ()
        return times

    model._extract_token_timestamps = extract_only


def load(path: str, values: Mapping[str, Any], slots: int) -> PipelineTranscriber:
    """Load a model for speech recognition and let it hear one second of silence."""
    import numpy as np
    from transformers import pipeline

    loading.show_progress()
    loading.phase("loading weights")
    device = loading.device_of(values)
    found = pipeline("automatic-speech-recognition", path, **loading.for_pipeline(path, values, device))
    loading.phase("warming up")
    rate = found.feature_extractor.sampling_rate
    found({"raw": np.zeros(rate, np.float32), "sampling_rate": rate})
    return PipelineTranscriber(found)
