"""What chat and completion have in common: sampling fields, the pieces of an answer, several answers at a time."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from byzerllm.engines.host.backend import (
    Embedder,
    Job,
    JsonSchema,
    Prompt,
    Reranker,
    Sampling,
    TextModel,
    Token,
    room,
)
from byzerllm.engines.host.fields import Fields, shown
from byzerllm.engines.host.text import TextStream
from byzerllm.errors import ContextExceeded, InvalidInput

MAX_ANSWERS = 128
MAX_ALTERNATIVES = 20
MAX_STOPS = 16
MAX_TOGETHER = 1024  # answers to all the prompts of one request
_TOKEN = re.compile("[0-9]{1,10}")  # a number, as the name of a field
# They say who asks or how the answer is billed; what it says does not depend on them.
WITHOUT_EFFECT = ("model", "user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier")


@dataclass(frozen=True)
class Wanted:
    """What a request wants of each answer, whatever the prompt."""

    sampling: Sampling
    max_tokens: int | None
    min_tokens: int
    stops: tuple[str, ...]
    keep_stop: bool
    end_ids: frozenset[int]
    show_special: bool
    count: int
    stream: bool
    usage_in_stream: bool

    def job(self, prompt: Prompt, context: int, number: int) -> Job:
        """The job of one of several answers; those that are seeded differ by their number.

        Raises:
            ContextExceeded: the prompt leaves no room for the answer.
        """
        sampling = self.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + number)
        limit = room(context, len(prompt.ids), self.max_tokens)
        return Job(prompt, limit, self.end_ids, sampling, min(self.min_tokens, limit))


class Piece(NamedTuple):
    """A part of one answer. ``reason`` is set in its last one; ``tokens`` are those whose text came in or was held."""

    number: int
    text: str
    tokens: tuple[Token, ...]
    reason: str | None = None


def read_wanted(fields: Fields, model: TextModel, *, alternatives: int | None, max_tokens: int | None) -> Wanted:
    """The fields that both kinds of request have.

    Raises:
        InvalidInput: one is of the wrong kind or out of its range.
    """
    fields.ignore(*WITHOUT_EFFECT)
    stream = fields.flag("stream")
    options = Fields(fields.object("stream_options"), "stream_options.")
    usage_in_stream = options.flag("include_usage")
    options.only("include_obfuscation", False)
    options.refuse_rest()
    stops = fields.strings("stop")
    if len(stops) > MAX_STOPS:
        raise fields.bad("stop", f"has {len(stops)} strings; at most {MAX_STOPS} are possible")
    ends = frozenset() if fields.flag("ignore_eos") else model.end_ids
    more_ends = fields.wholes("stop_token_ids")
    check_tokens(fields, "stop_token_ids", more_ends, model)
    return Wanted(
        sampling=_read_sampling(fields, model, alternatives),
        max_tokens=max_tokens,
        min_tokens=fields.whole("min_tokens", 0) or 0,
        stops=stops,
        keep_stop=fields.flag("include_stop_str_in_output"),
        end_ids=ends | frozenset(more_ends),
        show_special=not fields.flag("skip_special_tokens", True),
        count=fields.whole("n", 1, MAX_ANSWERS) or 1,
        stream=stream,
        usage_in_stream=usage_in_stream,
    )


def check_length(text: int, model: TextModel | Embedder | Reranker, name: str, what: str = "The prompt") -> None:
    """Refuse ``text`` characters that no tokens could hold, before it takes seconds to find that out.

    Raises:
        ContextExceeded: with the numbers.
    """
    if text > model.characters:
        raise ContextExceeded(
            f"{what} is {text} characters long; the model reads at most {model.context} tokens, and they hold "
            f"{model.characters} characters at most.",
            param=name,
        )


def check_tokens(fields: Fields, name: str, tokens: Iterable[int], model: TextModel) -> None:
    """Raises InvalidInput: a number is no token of the model."""
    wrong = next((token for token in tokens if not 0 <= token < model.vocabulary), None)
    if wrong is not None:
        raise fields.bad(name, f"has {shown(wrong)}, but the model's tokens are 0 to {model.vocabulary - 1}")


def _read_sampling(fields: Fields, model: TextModel, alternatives: int | None) -> Sampling:
    defaults = model.defaults

    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    top_k = fields.whole("top_k", -1)
    return Sampling(
        temperature=given(fields.number("temperature", 0, 2), defaults.temperature),
        top_p=given(fields.number("top_p", 0, 1), defaults.top_p),
        top_k=defaults.top_k if top_k is None else max(0, top_k),
        min_p=given(fields.number("min_p", 0, 1), defaults.min_p),
        repetition_penalty=given(fields.number("repetition_penalty", 0.01, 10), defaults.repetition_penalty),
        presence_penalty=given(fields.number("presence_penalty", -2, 2), 0.0),
        frequency_penalty=given(fields.number("frequency_penalty", -2, 2), 0.0),
        logit_bias=_read_bias(fields, model),
        seed=fields.whole("seed", -(2**63), 2**63 - 1),
        alternatives=alternatives,
    )


def _read_bias(fields: Fields, model: TextModel) -> dict[int, float]:
    bias: dict[int, float] = {}
    for token, value in fields.object("logit_bias").items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not _TOKEN.fullmatch(token) or not number or not -100 <= value <= 100:
            raise fields.bad("logit_bias", "must map token numbers to values between -100 and 100")
        bias[int(token)] = float(value)
    check_tokens(fields, "logit_bias", bias, model)
    return bias


async def pieces(model: TextModel, wanted: Wanted, prompt: Prompt, number: int) -> AsyncGenerator[Piece, None]:
    """One answer, token by token, the last piece with the reason of its end."""
    job = wanted.job(prompt, model.context, number)

    def decode(ids: Sequence[int]) -> str:
        return model.decode(ids, special=wanted.show_special)

    text = TextStream(decode, wanted.stops, keep_stop=wanted.keep_stop)
    reason = "length"
    async with aclosing(model.generate(job)) as source:
        async for token in source:
            if token.id in job.end_ids:
                reason = "stop"
                tail = text.feed(token.id) if wanted.show_special else ""
                yield Piece(number, tail, (token,))
                break
            new = text.feed(token.id)
            yield Piece(number, new, (token,))
            if text.stopped:
                reason = "stop"
                break
    rest = text.close()
    yield Piece(number, rest, (), "stop" if text.stopped else reason)


async def together(sources: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[Piece, None]:
    """The pieces of several answers as they come. If one fails all are ended."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for piece in only:
                yield piece
        return
    queue: asyncio.Queue[Piece | None] = asyncio.Queue()

    async def drain(source: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(source):
                async for piece in source:
                    queue.put_nowait(piece)
        finally:
            queue.put_nowait(None)

    tasks = [asyncio.ensure_future(drain(source)) for source in sources]
    try:
        for _ in sources:
            while (found := await queue.get()) is not None:
                yield found
            for task in tasks:
                if task.done():
                    task.result()  # raises what it failed with
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def usage(prompts: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompts, "completion_tokens": completion, "total_tokens": prompts + completion}


def envelope(kind: str, prefix: str, name: str, now: int) -> dict[str, Any]:
    """The fields that are the same in every chunk of an answer."""
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": now, "model": name}


def read_schema(fields: Fields) -> JsonSchema | None:
    """``response_format``: the JSON schema that the answer has to keep; ``{}`` stands for any object.

    Raises:
        InvalidInput: it is none of text, json_object and json_schema, or comes with what forbids the end of an answer.
    """
    format_ = Fields(fields.object("response_format"), "response_format.")
    kind = format_.choice("type", ("text", "json_object", "json_schema"), "text")
    schema = format_.object("json_schema")
    format_.refuse_rest()
    if kind == "text":
        return None
    check_may_end(fields, "response_format")
    if kind == "json_object":
        return JsonSchema(json.dumps({"type": "object"}))
    if not isinstance(schema.get("schema"), dict):
        raise InvalidInput("'response_format.json_schema.schema' must be an object.", param="response_format")
    return JsonSchema(json.dumps(schema["schema"]))


def check_may_end(fields: Fields, name: str) -> None:
    """Raises InvalidInput: the end is forbidden, and it is all that may come when the structure of an answer, which
    the field ``name`` asks for, is whole."""
    if fields.flag("ignore_eos") or fields.whole("min_tokens", 0):
        raise fields.bad(name, "cannot be combined with 'ignore_eos' or 'min_tokens'")
