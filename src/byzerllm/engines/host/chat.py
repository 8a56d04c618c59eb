"""``/v1/chat/completions``."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from byzerllm.engines.host import generation
from byzerllm.engines.host.backend import Prompt, TextModel, Token
from byzerllm.engines.host.fields import Fields
from byzerllm.engines.host.generation import Piece, Wanted
from byzerllm.engines.host.protocol import Answer, Events, HttpRequest, Whole
from byzerllm.engines.host.tools import Tools, read_tools
from byzerllm.engines.host.words import OF_THE_REQUEST
from byzerllm.errors import InvalidInput

LONGEST_SILENCE = 16  # tokens of a stream, while a call is written: who waits for bytes would give it up


@dataclass(frozen=True)
class Chat:
    """A chat request that was read."""

    wanted: Wanted
    prompt: Prompt
    tools: Tools


async def answer(model: TextModel, request: HttpRequest, name: str) -> Answer:
    """Answer a chat request.

    Raises:
        InvalidInput: it asks for what there is not, or is malformed.
        ContextExceeded: it is too long.
    """
    chat = await _read(model, request)
    job = chat.wanted.job(chat.prompt, model.context, 0)  # so that what is too long is refused before anything is sent
    writers = [_Writer(model, chat, number) for number in range(chat.wanted.count)]
    sources = [generation.pieces(model, chat.wanted, job.prompt, number) for number in range(chat.wanted.count)]
    together = generation.together(sources)
    if chat.wanted.stream:
        head = generation.envelope("chat.completion.chunk", "chatcmpl", name, request.at)
        return Events(_stream(together, writers, chat, head))
    async with aclosing(together):
        async for piece in together:
            writers[piece.number].add(piece)
    usage = generation.usage(len(chat.prompt.ids), sum(writer.count for writer in writers))
    head = generation.envelope("chat.completion", "chatcmpl", name, request.at)
    return Whole({**head, "choices": [writer.choice() for writer in writers], "usage": usage})


async def _stream(
    source: AsyncGenerator[Piece, None], writers: list[_Writer], chat: Chat, head: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    extra: dict[str, Any] = {"usage": None} if chat.wanted.usage_in_stream else {}
    async with aclosing(source):
        async for piece in source:
            for choice in writers[piece.number].chunks(piece):
                yield {**head, "choices": [choice], **extra}
    if chat.wanted.usage_in_stream:
        usage = generation.usage(len(chat.prompt.ids), sum(writer.count for writer in writers))
        yield {**head, "choices": [], "usage": usage}


async def _read(model: TextModel, request: HttpRequest) -> Chat:
    fields = Fields(request.json())
    alternatives = fields.whole("top_logprobs", 0, generation.MAX_ALTERNATIVES)
    if not fields.flag("logprobs"):
        if alternatives:
            raise fields.bad("top_logprobs", "needs 'logprobs': true")
        alternatives = None
    else:
        alternatives = alternatives or 0
    newer, older = fields.whole("max_completion_tokens", 1), fields.whole("max_tokens", 1)
    wanted = generation.read_wanted(fields, model, alternatives=alternatives, max_tokens=newer or older)
    fields.only("store", False)
    fields.only("modalities", ["text"])
    tools = read_tools(fields, model.tool_format)
    schema = generation.read_schema(fields)
    if schema and tools.forced:
        raise fields.bad("response_format", "cannot be combined with a call that 'tool_choice' forces")
    wanted = replace(wanted, sampling=replace(wanted.sampling, structure=schema or tools.forced))
    if tools.forced:  # what ends a text is no matter of calls, which have none and end when they are whole
        wanted = replace(wanted, stops=(), end_ids=model.end_ids)
    options = read_template_options(fields)
    messages = read_messages(fields)
    fields.refuse_rest()
    check_chat_length(messages, tools.offered, model)
    prompt = await model.chat_prompt(messages, tools.offered or None, options)
    if not prompt.ids:
        raise fields.bad("messages", "make an empty prompt in the model's chat template")
    return Chat(wanted, prompt, tools)


def read_template_options(fields: Fields) -> dict[str, Any]:
    options = dict(fields.object("chat_template_kwargs"))
    for name in OF_THE_REQUEST:
        if name in options:
            raise fields.bad(f"chat_template_kwargs.{name}", f"is a field of the request itself: '{name}'")
    continued = fields.flag("continue_final_message")
    options["continue_final_message"] = continued
    options["add_generation_prompt"] = fields.flag("add_generation_prompt", not continued)
    return options


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    messages = fields.objects("messages")
    if not messages:
        raise fields.bad("messages", "is missing or empty")
    for number, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise InvalidInput(f"'messages[{number}].role' must be a string.", param="messages")
    return [_with_objects(message) for message in messages]


def check_chat_length(messages: list[dict[str, Any]], tools: list[dict[str, Any]], model: TextModel) -> None:
    """Raises ContextExceeded: what the template is to show of the messages or the tools is longer than all that the
    model reads."""
    generation.check_length(sum(map(_length, messages)), model, "messages")
    generation.check_length(len(json.dumps(tools, ensure_ascii=False)), model, "tools")


def _length(message: dict[str, Any]) -> int:
    """The characters of a message's texts, and of earlier calls in it."""
    content = message.get("content")
    texts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else [content]
    texts += [json.dumps(value) for name, value in message.items() if name not in ("role", "content")]
    return sum(len(text) for text in texts if isinstance(text, str))


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """Chat templates take the arguments of earlier calls as objects; OpenAI sends them as JSON text."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_with_object(call) for call in calls]}


def _with_object(call: Any) -> Any:
    try:
        function = call["function"]
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except (KeyError, TypeError, ValueError):
        return call


class _Writer:
    """One of the answers, as chunks of a stream or as a whole."""

    def __init__(self, model: TextModel, chat: Chat, number: int) -> None:
        self._model = model
        self._number = number
        self._with_logprobs = chat.wanted.sampling.alternatives is not None
        self._tools = chat.tools.reader(model.tool_format)
        self._named = chat.tools.named  # the end of the call that the client has chosen is an end like any other
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._started = False
        self._silence = 0  # pieces of which nothing was sent
        self._reason: str | None = None
        self.count = 0  # tokens

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """The ``choices`` entries that a piece makes."""
        text = self._text_of(piece)
        out: list[dict[str, Any]] = []
        if not self._started:
            self._started = True
            out.append(self._chunk({"role": "assistant", "content": ""}))
        logprobs = self._logprobs_of(piece.tokens)
        if text or logprobs:
            out.append(self._chunk({"content": text}, logprobs=logprobs))
        out += [self._chunk({"tool_calls": [news]}) for news in self._tools.news()] if self._tools else []
        if piece.reason:
            out.append(self._chunk({}, self._reason_of(piece.reason)))
        self._silence = 0 if out else self._silence + 1
        if self._silence == LONGEST_SILENCE:
            self._silence = 0
            out.append(self._chunk({}))
        return out

    def _chunk(
        self, delta: dict[str, Any], reason: str | None = None, logprobs: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        shown = {"content": logprobs} if logprobs else None
        return {"index": self._number, "delta": delta, "logprobs": shown, "finish_reason": reason}

    def add(self, piece: Piece) -> None:
        self._texts.append(self._text_of(piece))
        self._logprobs += self._logprobs_of(piece.tokens)
        if piece.reason:
            self._reason = self._reason_of(piece.reason)

    def _reason_of(self, reason: str) -> str:
        calls = self._tools is not None and self._tools.whole and self._tools.calls
        return "tool_calls" if calls and not self._named else reason

    def choice(self) -> dict[str, Any]:
        """The whole answer."""
        text = "".join(self._texts)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self._tools is not None and self._tools.calls:
            message["content"] = text or None
            message["tool_calls"] = [call.as_openai() for call in self._tools.calls]
        logprobs = {"content": self._logprobs} if self._with_logprobs else None
        return {"index": self._number, "message": message, "logprobs": logprobs, "finish_reason": self._reason}

    def _text_of(self, piece: Piece) -> str:
        """What of a piece is none of a call."""
        self.count += len(piece.tokens)
        if self._tools is None:
            return piece.text
        text = self._tools.feed(piece.text)
        return text + self._tools.close() if piece.reason else text

    def _logprobs_of(self, tokens: tuple[Token, ...]) -> list[dict[str, Any]]:
        if not self._with_logprobs:
            return []
        return [
            {**self._likely(token.id, token.logprob), "top_logprobs": [self._likely(*other) for other in token.top]}
            for token in tokens
        ]

    def _likely(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._model.decode([token], special=True)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}
