"""What transformers' Whisper needs from outside: features of a long sound in little memory, its thresholds, and to
forget of each window what is not read again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

WINDOW = 30  # seconds that it hears at a time; where one window ends is told by the times that it writes
LOGPROB_THRESHOLD = -1.0  # Whisper's own: what counts as no speech must also be written without confidence
LOUDNESS_RANGE = 2.0  # of features: what is further below the loudest is raised to that


def features(extractor: Any, sound: Any) -> Iterator[Any]:
    """The features ``[1, bands, frames]`` of a sound, piece by piece: together, after ``levelled``, they are those that
    the extractor makes of all of it, for which it would need ten times their memory."""
    hop = extractor.hop_length
    piece = WINDOW * extractor.sampling_rate // hop * hop
    edge = (extractor.n_fft // 2 // hop + 1) * hop  # samples beside a piece that its first and last frames are made of
    for begin in range(0, len(sound), piece):
        start = max(0, begin - edge)
        made = extractor(
            sound[start : begin + piece + edge],
            sampling_rate=extractor.sampling_rate,
            truncation=False,
            padding="longest",
            return_tensors="np",
        )["input_features"]
        first = (begin - start) // hop
        yield made[..., first : first + piece // hop]


def levelled(found: Any) -> Any:
    """Features of which the loudest frame of all, and not of each piece, says what is too quiet to count."""
    return found.clip(min=found.max() - LOUDNESS_RANGE, out=found)


def thresholds(config: Any) -> dict[str, Any]:
    """What ``generate`` must be told for the thresholds in generation_config.json. It does not keep the scores that the
    first one is about, nor know a list of temperatures or the second threshold without the first, unless told so."""
    options: dict[str, Any] = {"temperature": config.temperature if isinstance(config.temperature, list) else 0.0}
    if getattr(config, "logprob_threshold", None) is not None:
        options["logprob_threshold"] = config.logprob_threshold
    elif getattr(config, "no_speech_threshold", None) is not None:
        options["logprob_threshold"] = LOGPROB_THRESHOLD
    return options


def mend(model: Any) -> None:
    """Have ``generate`` forget what it would keep of each window until the end of the sound, though nothing reads it
    again, and take a sound without speech."""
    _forget_attentions(model)
    _forget_scores(model)
    generate = model.generate

    def with_or_without_speech(**options: Any) -> Any:
        found = generate(**options)
        if isinstance(found, dict) and "segments" in found and not any(found["segments"]):
            del found["segments"]  # the pipeline would put together the times of the words in none of them
        return found

    model.generate = with_or_without_speech


def _forget_attentions(model: Any) -> None:
    """The times of words come from them: gigabytes for each minute."""
    extract = model._extract_token_timestamps

    def extract_only(outputs: Any, *positional: Any, **named: Any) -> Any:
        times = extract(outputs, *positional, **named)
        for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
            outputs[name] = ()
        return times

    model._extract_token_timestamps = extract_only


def _forget_scores(model: Any) -> None:
    """The thresholds are about them: one for each token of the vocabulary and each step."""
    need_fallback = model._need_fallback

    def judge_only(tokens: Any, outputs: Any, index: int, *more: Any) -> Any:
        judged = need_fallback(tokens, outputs, index, *more)
        if isinstance(outputs[index], dict):
            outputs[index]["scores"] = ()
        return judged

    model._need_fallback = judge_only


def with_language(output: dict[str, Any]) -> dict[str, Any]:
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


def language_of(output: Mapping[str, Any], tokenizer: Any) -> str | None:
    """The code of the language that was heard, None of a model that knows one only."""
    token = output.get("lang_id")
    return None if token is None else tokenizer.convert_ids_to_tokens(int(token)).strip("<|>")


def prompt_ids(prompt: str, tokenizer: Any, config: Any) -> Any:
    """The tokens of a prompt. Of one that is longer than half of what Whisper can write, it reads the end."""
    import torch

    ids = tokenizer.get_prompt_ids(prompt, return_tensors="pt")
    most = config.max_target_positions // 2 - 1
    return torch.cat([ids[:1], ids[1:][-most:]])  # the first one says what they are
