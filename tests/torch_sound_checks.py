"""Checks of how the host writes down what it hears; see ``torch_checks.py``, which runs them."""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers as hf
from scipy.signal import resample_poly
from scripts import tiny_hf_media

from byzerllm.engines.host import sounds, transcription, whisper
from byzerllm.engines.host.backend import Recording, Transcript
from byzerllm.errors import InvalidInput


class Hearing:
    """A Whisper of random weights, with ``told`` more in its generation_config.json. ``kept`` is what it has of each
    step of a sound at its end, by name; ``segments`` is how many of them were looked at."""

    def __init__(self, **told: Any) -> None:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            tiny_hf_media.write_transcription(Path(folder))
            config = Path(folder, "generation_config.json")
            config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | told), "utf-8")
            self.host = transcription.load(folder, {"device": "cpu"}, 1)
        self.kept: set[str] = set()
        self.segments = 0
        self.model = self.host._pipeline.model
        self._generate = self.model.generate
        self.model.generate = self._watched

    def _watched(self, **options: Any) -> Any:
        found = self._generate(**options)
        for segment in found.get("segments", [[]])[0]:
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


def check_a_folder_may_set_thresholds(path: str) -> None:
    quiet: dict[str, Any] = {"no_speech_threshold": 0.6}
    doubtful: dict[str, Any] = {"logprob_threshold": -1.0}
    again = {"compression_ratio_threshold": 1.35, "temperature": [0.0, 0.2], "condition_on_prev_tokens": True}
    plain = Hearing()
    right = [plain.hear(seconds, words=True, timestamps=True) for seconds in (2, 65)]
    for told in (quiet, doubtful, quiet | doubtful):  # with no other temperature there is nothing else to try
        hearing = Hearing(**told)
        assert [hearing.hear(seconds, words=True, timestamps=True) for seconds in (2, 65)] == right, told
        assert hearing.hear(65) == plain.hear(65)
        assert hearing.kept == set(), told
    for told in (again, quiet | doubtful | again, {"return_dict_in_generate": True}, {"num_beams": 2} | doubtful):
        hearing = Hearing(**told)
        for seconds in (2, 65):
            assert hearing.hear(seconds, temperature=0.5).duration == seconds
            assert hearing.hear(seconds, words=True).text


def check_a_second_temperature_is_tried(path: str) -> None:
    seen: list[bool] = []
    for told in ({}, {"temperature": [0.0, 0.4, 0.8], "logprob_threshold": 0.0}):
        hearing = Hearing(**told)
        judge = hearing.model._need_fallback

        def watched(*given: Any, judge: Any = judge) -> Any:
            judged = judge(*given)
            seen.append(judged[0])
            return judged

        hearing.model._need_fallback = watched
        hearing.hear(2)
    assert not seen.pop(0)
    assert all(seen)
    assert len(seen) % 3 == 0 != len(seen), "each window is tried three times"


def check_what_is_no_speech_makes_no_text(path: str) -> None:
    hearing = Hearing(no_speech_threshold=0.0, logprob_threshold=0.0)
    for seconds in (2, 65):
        for wanted in ({}, {"timestamps": True}, {"words": True}):
            found = hearing.hear(seconds, **wanted)
            assert (found.text, found.segments, list(found.words)) == ("", [], [])
            assert found.duration == seconds


def check_the_features_of_a_long_sound_are_those_of_all_of_it(path: str) -> None:
    extractor = Hearing().host._pipeline.feature_extractor
    for length in (16_000 * 60, 16_000 * 65 + 77, 16_000 * 60 + 1, 16_000 * 90 + 159):
        loud = np.linspace(0, 1, length, dtype=np.float32) ** 4
        noise = loud * np.random.default_rng(2).normal(size=length).astype(np.float32)
        right = extractor(noise, sampling_rate=16_000, truncation=False, padding="longest", return_tensors="np")
        parts = list(whisper.features(extractor, noise))
        assert len(parts) > 1
        found = whisper.levelled(sounds.joined(parts))
        assert found.shape == right.input_features.shape
        assert np.abs(found - right.input_features).max() < 1e-4


def check_a_sound_is_resampled_in_pieces(path: str) -> None:
    dice = np.random.default_rng(3)
    for rate, wanted in ((48_000, 16_000), (44_100, 16_000), (8_000, 16_000), (44_101, 16_000), (16_000, 16_000)):
        for length in (1, 100, 100_003):
            sound = dice.normal(size=length).astype(np.float32)
            right = resample_poly(sound, wanted, rate)
            for size in (997, 40_000):
                blocks = (sound[i : i + size] for i in range(0, length, size))
                found = np.concatenate(list(sounds.resampled(blocks, rate, wanted)))
                assert found.shape == right.shape
                assert np.abs(found - right).max() < 1e-4


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
        sounds.samples(b"RIFFxxxx", 16_000)
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


def check_what_is_read_ends_when_nobody_waits_for_it(path: str) -> None:
    # A few bytes that hold hours of silence; whoever comes meanwhile has his turn between two pieces.
    hearing = Hearing()
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16_000 * 3600), 16_000, format="FLAC")
    run = hearing.host._reading.run
    pieces: list[str] = []

    async def watched(work: Any, *more: Any) -> Any:
        task = asyncio.current_task()
        pieces.append(task.get_name() if task else "")
        return await run(work, *more)

    vars(hearing.host._reading)["run"] = watched

    async def leave() -> None:
        one = asyncio.create_task(hearing.host.transcribe(Recording(file.getvalue())), name="long")
        while not pieces:
            await asyncio.sleep(0)
        await asyncio.create_task(hearing.host.transcribe(Recording(sound(1))), name="short")
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        seen = pieces.count("long")
        await hearing.host.transcribe(Recording(sound(1)))
        assert pieces.count("long") == seen < 100  # of 133 and more
        assert pieces.index("short") < len(pieces) - 1 - pieces[::-1].index("long")

    asyncio.run(leave())


def check_another_recogniser_hears_sounds_of_any_length(path: str) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
        Path(folder, "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}), "utf-8")
        words = hf.Wav2Vec2CTCTokenizer(f"{folder}/vocab.json")
        hf.Wav2Vec2Processor(hf.Wav2Vec2FeatureExtractor(), words).save_pretrained(folder)
        config = hf.Wav2Vec2Config(
            vocab_size=len(letters), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
        )  # fmt: skip
        hf.Wav2Vec2ForCTC(config).save_pretrained(folder)
        host = transcription.load(folder, {"device": "cpu"}, 1)
    lengths: list[int] = []
    host._pipeline.model.register_forward_pre_hook(
        lambda *call: lengths.append(call[2]["input_values"].shape[1]), with_kwargs=True
    )
    for seconds in (0.001, 2, 65):
        assert asyncio.run(host.transcribe(Recording(sound(seconds)))).duration == seconds
    assert len(lengths) > 4
    assert max(lengths) <= 30 * 16_000
    host._longest = 60  # as of one that does not hear in windows
    assert "lasts 65.0 seconds; at its rate at most 60 are possible" in problem_of(host, sound(65))


def check_numbers_that_are_none_are_refused(path: str) -> None:
    hearing = Hearing()
    for number in (np.nan, np.inf, -3e38):
        file = io.BytesIO()
        soundfile.write(file, np.full(1000, number, np.float32), 16_000, format="WAV", subtype="FLOAT")
        assert "samples that are no numbers" in problem_of(hearing.host, file.getvalue())
    assert problem_of(hearing.host, sound(0)) == "The sound is empty."


def problem_of(host: Any, data: bytes) -> str:
    try:
        asyncio.run(host.transcribe(Recording(data)))
    except InvalidInput as error:
        return error.message
    return ""


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
