"""Checks of how the host writes down what it hears; see ``torch_checks.py``, which runs them."""

from __future__ import annotations

import asyncio
import io
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from scripts import tiny_hf_media

from byzerllm.engines.host import transcription
from byzerllm.engines.host.backend import Recording, Transcript
from byzerllm.errors import InvalidInput


class Hearing:
    """A Whisper of random weights. ``kept`` is what it has of each step of a sound at its end, by name; ``segments`` is
    how many of them were looked at."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            tiny_hf_media.write_transcription(Path(folder))
            self.host = transcription.load(folder, {"device": "cpu"}, 1)
        self.kept: set[str] = set()
        self.segments = 0
        self.model = self.host._pipeline.model
        self._generate = self.model.generate
        self.model.generate = self._watched

    def _watched(self, **options: Any) -> Any:
        found = self._generate(**options)
        for segment in found["segments"][0]:
            if isinstance(segment["result"], dict):
                self.segments += 1
                self.kept |= {
                    name for name, value in segment["result"].items() if isinstance(value, list | tuple) and value
                }
        return found

    def hear(self, seconds: float, **wanted: Any) -> Transcript:
        return asyncio.run(self.host.transcribe(Recording(sound(seconds), **wanted)))


def sound(seconds: float) -> bytes:
    """A file of noise."""
    file = io.BytesIO()
    noise = np.random.default_rng(1).normal(scale=0.1, size=int(16_000 * seconds))
    soundfile.write(file, noise, 16_000, format="WAV")
    return file.getvalue()


def check_words_have_times(path: str) -> None:
    hearing = Hearing()
    for seconds in (0.01, 2, 65):  # less than a step of the encoder, a part of a window, more than two
        found = hearing.hear(seconds, words=True, timestamps=True)
        assert found.words
        assert "".join(segment.text for segment in found.segments).strip() == found.text
        assert all(0 <= piece.start <= piece.end <= seconds for piece in (*found.words, *found.segments))
        assert found == hearing.hear(seconds, words=True, timestamps=True)
    assert max(word.end for word in found.words) > 60
    assert found.segments == hearing.hear(65, timestamps=True).segments
    assert hearing.hear(2).words == hearing.hear(2, timestamps=True).words == []
    assert hearing.hear(2, words=True).segments == []


def check_what_the_words_are_made_of_is_not_kept(path: str) -> None:
    hearing = Hearing()
    hearing.hear(65, words=True)
    assert hearing.segments > 10
    assert hearing.kept == set()


def check_the_language_is_told(path: str) -> None:
    hearing = Hearing()
    assert hearing.hear(2).language in ("en", "zh")
    assert hearing.hear(2, language="zh").language == "zh"
    # In Chinese a character is a word; with another language it is what stands between two spaces.
    read: list[Any] = []
    pipeline = hearing.host._pipeline
    postprocess = pipeline.postprocess

    def watched(outputs: Any, **more: Any) -> Any:
        read.append(outputs[0]["tokens"][0, 0])
        return postprocess(outputs, **more)

    pipeline.postprocess = watched
    hearing.hear(2, language="zh", words=True)
    assert read == [pipeline.tokenizer.convert_tokens_to_ids("<|zh|>")] * 2


def check_a_model_without_alignment_tells_no_words(path: str) -> None:
    hearing = Hearing()
    del hearing.model.generation_config.alignment_heads
    hearing.host = transcription.PipelineTranscriber(hearing.host._pipeline)
    assert hearing.hear(2, timestamps=True).segments
    try:
        hearing.hear(2, words=True)
    except InvalidInput as error:
        problem = str(error)
    else:
        problem = ""
    assert "'alignment_heads'" in problem


def check_what_is_no_sound_is_refused(path: str) -> None:
    try:
        transcription.samples(b"RIFFxxxx", 16_000)
    except InvalidInput as error:
        problem = error.message
    else:
        problem = ""
    assert problem == "The sound cannot be read: Format not recognised."


def check_it_ends_when_nobody_waits_for_it(path: str) -> None:
    hearing = Hearing()
    begun = threading.Event()
    windows: list[Any] = []

    def watch(*_: Any) -> None:
        windows.append(None)
        begun.set()

    hearing.model.get_encoder().register_forward_hook(watch)

    async def leave() -> None:
        one = asyncio.ensure_future(hearing.host.transcribe(Recording(sound(1200), words=True)))
        assert await asyncio.to_thread(begun.wait, 60)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        seen = len(windows)
        await hearing.host.transcribe(Recording(sound(1)))
        assert len(windows) <= seen + 3  # of 40 and more

    asyncio.run(leave())


def check_of_a_long_prompt_the_end_counts(path: str) -> None:
    hearing = Hearing()
    words = hearing.host._pipeline.tokenizer
    given: list[Any] = []
    generate = hearing.model.generate

    def watched(**options: Any) -> Any:
        given.append(options["prompt_ids"].tolist())
        return generate(**options)

    hearing.model.generate = watched
    # Its own way refuses the text of a tokenizer whose control tokens are not the last ones.
    words.get_prompt_ids = lambda text, return_tensors: torch.tensor(
        [518, *words.encode(text, add_special_tokens=False)]
    )
    for seconds in (2, 40):
        hearing.hear(seconds, prompt="a b " * 100 + "world")
    most = hearing.model.config.max_target_positions // 2 - 1
    end = words.encode("a b " * 100 + "world", add_special_tokens=False)[-most:]
    assert given == [[518, *end]] * 2
