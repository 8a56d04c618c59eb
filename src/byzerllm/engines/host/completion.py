"""``/v1/completions``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from byzerllm.engines.host import generation
from byzerllm.engines.host.backend import Prompt, TextModel, Token, room
from byzerllm.engines.host.fields import Fields, are_wholes
from byzerllm.engines.host.generation import Piece, Wanted
from byzerllm.engines.host.protocol import Answer, Events, HttpRequest, Whole

DEFAULT_TOKENS = 16  # OpenAI's for this old form


async def answer(model: TextModel, request: HttpRequest, name: str) -> Answer:
    """Answer a completion request: one answer or ``n`` for each of its prompts.

    Raises:
        InvalidInput: it asks for what there is not, or is malformed.
        ContextExceeded: it is too long.
    """
    fields = Fields(request.json())
    alternatives = fields.whole("logprobs", 0, generation.MAX_ALTERNATIVES)
    limit = fields.whole("max_tokens", 1) or DEFAULT_TOKENS
    wanted = generation.read_wanted(fields, model, alternatives=alternatives, max_tokens=limit)
    fields.only("best_of", 1, wanted.count)
    fields.only("suffix", "")
    echo = fields.flag("echo")
    if echo and alternatives is not None:
        raise fields.bad("echo", "cannot be combined with 'logprobs'")
    prompts = await _read_prompts(fields, model, wanted.count)
    fields.refuse_rest()
    for prompt in prompts:
        wanted.job(prompt, model.context, 0)  # what is too long is refused before anything is sent
    head = generation.envelope("text_completion", "cmpl", name, request.at)
    return await _answer(model, wanted, prompts, echo, head)


async def _answer(model: TextModel, wanted: Wanted, prompts: list[Prompt], echo: bool, head: dict[str, Any]) -> Answer:
    asked = [prompt for prompt in prompts for _ in range(wanted.count)]
    writers = [_Writer(model, wanted, prompt, number, echo) for number, prompt in enumerate(asked)]
    together = generation.together(
        [generation.pieces(model, wanted, prompt, number) for number, prompt in enumerate(asked)]
    )
    read = sum(len(prompt.ids) for prompt in prompts)
    if wanted.stream:
        return Events(_stream(together, writers, head, read if wanted.usage_in_stream else None))
    async with aclosing(together):
        async for piece in together:
            writers[piece.number].add(piece)
    usage = generation.usage(read, sum(writer.count for writer in writers))
    return Whole({**head, "choices": [writer.choice() for writer in writers], "usage": usage})


async def _stream(
    source: AsyncGenerator[Piece, None], writers: list[_Writer], head: dict[str, Any], read: int | None
) -> AsyncGenerator[dict[str, Any], None]:
    extra: dict[str, Any] = {} if read is None else {"usage": None}
    async with aclosing(source):
        async for piece in source:
            chunk = writers[piece.number].chunk(piece)
            if chunk is not None:
                yield {**head, "choices": [chunk], **extra}
    if read is not None:
        usage = generation.usage(read, sum(writer.count for writer in writers))
        yield {**head, "choices": [], "usage": usage}


async def _read_prompts(fields: Fields, model: TextModel, answers: int) -> list[Prompt]:
    """``prompt`` is a text, a list of texts, a list of tokens, or a list of lists of tokens; ``answers`` are wanted to
    each."""
    value = fields.raw("prompt")
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        value = [value]
    special = fields.flag("add_special_tokens", True)
    if not isinstance(value, list) or not value:
        raise fields.bad("prompt", "must be a text or a list of texts or tokens")
    if len(value) * answers > generation.MAX_TOGETHER:
        asked = f"{len(value)} with {answers} answers each; at most {generation.MAX_TOGETHER} together are possible"
        raise fields.bad("prompt", f"has {asked}")
    prompts = []
    for one in value:
        if isinstance(one, str):
            generation.check_length(len(one), model, "prompt")
            prompts.append(Prompt(await model.encode(one, special=special)))
        elif are_wholes(one):
            room(model.context, len(one), None)
            generation.check_tokens(fields, "prompt", one, model)
            prompts.append(Prompt(one))
        else:
            raise fields.bad("prompt", "must be a text or a list of texts or tokens")
    if not all(prompt.ids for prompt in prompts):
        raise fields.bad("prompt", "is empty")
    return prompts


class _Writer:
    """One of the answers, as chunks of a stream or as a whole."""

    def __init__(self, model: TextModel, wanted: Wanted, prompt: Prompt, number: int, echo: bool) -> None:
        self._model = model
        self._number = number
        self._with_logprobs = wanted.sampling.alternatives is not None
        self._before = model.decode(prompt.ids) if echo else ""
        self._texts: list[str] = []
        self._tokens: list[Token] = []
        self._length = 0  # characters so far
        self._reason: str | None = None
        self.count = 0

    def chunk(self, piece: Piece) -> dict[str, Any] | None:
        """The ``choices`` entry that a piece makes, None if there is nothing to say."""
        self.count += len(piece.tokens)
        text, self._before = self._before + piece.text, ""
        if not text and not piece.reason and not self._with_logprobs:
            return None
        return self._choice(text, piece.tokens, piece.reason)

    def add(self, piece: Piece) -> None:
        self.count += len(piece.tokens)
        self._texts.append(piece.text)
        self._tokens += piece.tokens
        self._reason = piece.reason

    def choice(self) -> dict[str, Any]:
        """The whole answer."""
        return self._choice(self._before + "".join(self._texts), tuple(self._tokens), self._reason)

    def _choice(self, text: str, tokens: tuple[Token, ...], reason: str | None) -> dict[str, Any]:
        shown = self._logprobs(tokens) if self._with_logprobs else None
        return {"index": self._number, "text": text, "logprobs": shown, "finish_reason": reason}

    def _logprobs(self, tokens: tuple[Token, ...]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._length)
            self._length += len(self._text(token.id))
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._text(other.id): other.logprob for other in token.top} for token in tokens],
            "text_offset": offsets,
        }

    def _text(self, token: int) -> str:
        return self._model.decode([token], special=True)
