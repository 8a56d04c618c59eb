"""A model's tokenizer and chat template."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from byzerllm.engines.host.backend import Sampling
from byzerllm.engines.host.batches import OneThread
from byzerllm.engines.host.templates import refusals, refused, variables_of
from byzerllm.engines.host.tool_calls import MARKERS, format_of
from byzerllm.errors import ContextExceeded, InvalidInput

NO_TEMPLATE_HINT = "Deploy it with backend.chat_template=FILE (a Jinja template), or use /v1/completions."
LONGEST_WORD = 100  # characters: of a longer one WordPiece makes a single unknown token
OF_THE_REQUEST = ("add_generation_prompt", "continue_final_message")  # options that are fields of their own


class Words:
    """Text to tokens and back. ``tokenizer`` is transformers', ``size`` how many tokens the model knows;
    ``template`` is the chat template that holds instead of the model's own. What may take long is a coroutine, which
    works in a thread of its own, one text after the other."""

    def __init__(self, tokenizer: Any, size: int, folder: str, template: str | None) -> None:
        self._tokenizer = tokenizer
        self._size = size
        self._folder = folder
        self._thread = OneThread()
        self._hidden = _hidden_tokens(tokenizer)
        self.longest = max(LONGEST_WORD, *map(len, tokenizer.get_vocab()))  # characters of a token
        if template is not None:
            tokenizer.chat_template = template

    @property
    def tool_format(self) -> str | None:
        return format_of(self._template_text())

    def _template_text(self) -> str:
        template = self._tokenizer.chat_template
        return "".join(template.values()) if isinstance(template, dict) else template or ""

    async def encode(self, text: str, *, special: bool) -> list[int]:
        return await self._thread.run(self.ids, text, special)

    def ids(self, text: str, special: bool) -> list[int]:
        """The tokens of a text, read in the caller's thread.

        Raises:
            InvalidInput: the tokenizer has a token for it that the model does not know.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        self._check(ids)
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        self._check(ids)
        if self._hidden and not special:
            ids, special = [token for token in ids if token not in self._hidden], True
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return text

    def _check(self, ids: Sequence[int]) -> None:
        if ids and (min(ids) < 0 or max(ids) >= self._size):
            wrong = next(token for token in ids if not 0 <= token < self._size)
            raise InvalidInput(f"{wrong} is no token of this model: it has 0 to {self._size - 1}.", param="prompt")

    async def chat(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> list[int]:
        """The tokens of the messages in the chat template.

        Raises:
            InvalidInput: there is none, or it does not take these messages, tools or options.
        """
        self.check_template(tools, options)
        return await self._thread.run(self._chat, messages, tools, options)

    def _chat(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> list[int]:
        plain = [{**message, "content": text_of(message.get("content"))} for message in messages]
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(plain, tools=tools, return_dict=False, **options)
        except refusals() as error:
            raise refused(error) from None
        self._check(ids)
        return ids

    def check_template(self, tools: Any, options: Mapping[str, Any]) -> None:
        """Raises InvalidInput: there is no chat template, or it has no place for the tools or one of the options."""
        if not self._template_text():
            raise InvalidInput(
                f"The model has no chat template: neither tokenizer_config.json nor chat_template.jinja in "
                f"{self._folder} holds one.",
                hint=NO_TEMPLATE_HINT,
                param="messages",
            )
        if tools and "tools" not in self._template_text():
            raise InvalidInput("The model's chat template has no place for tools.", param="tools")
        given = [name for name in options if name not in OF_THE_REQUEST]
        if not given:
            return
        # transformers takes such names for its own parameters first (another template, a cut, no tokens at all), and a
        # processor takes all that the template does not have.
        known = self._variables()
        wrong = next((name for name in given if name not in known), None)
        if wrong is not None:
            raise InvalidInput(
                f"'chat_template_kwargs.{wrong}' is no variable of the model's chat template.",
                hint=f"It has {', '.join(sorted(known))}." if known else None,
                param=f"chat_template_kwargs.{wrong}",
            )

    def _variables(self) -> set[str]:
        """The variables of the chat template that a request may set."""
        parameters = inspect.signature(self._tokenizer.apply_chat_template).parameters
        try:
            found = variables_of(self._template_text())
        except refusals() as error:
            raise refused(error) from None
        return {name for name in found if name == "documents" or name not in ("messages", *parameters)}


def text_of(content: Any) -> Any:
    """The text of a message whose content came in parts.

    Raises:
        InvalidInput: a part is no text; this model reads nothing else.
    """
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise InvalidInput(f"This model reads text only, and a message holds {kind!r}.", param="messages")
    return "".join(part["text"] for part in content)


def check_lengths(lengths: Sequence[int], context: int, param: str) -> int:
    """The tokens of several texts together.

    Raises:
        ContextExceeded: one of them is longer than the model reads; nothing is cut off in silence.
    """
    longest = max(lengths)
    if longest > context:
        raise ContextExceeded(
            f"'{param}[{lengths.index(longest)}]' is {longest} tokens long; the model reads at most {context}.",
            param=param,
        )
    return sum(lengths)


def _hidden_tokens(tokenizer: Any) -> frozenset[int]:
    """The control tokens but for those around tool calls, which are found by their text; empty if none of these is a
    control token, so that the tokenizer's own way of leaving them out does."""
    known = getattr(tokenizer, "added_tokens_decoder", {})  # Mistral's own tokenizer has none
    special = {token: added.content for token, added in known.items() if added.special}
    markers = {token for token, text in special.items() if text in MARKERS}
    return frozenset(special.keys() - markers) if markers else frozenset()


def sampling_defaults(folder: str) -> Sampling:
    """What the model's publisher recommends in generation_config.json; neutral values for the rest."""
    try:
        found = json.loads((Path(folder) / "generation_config.json").read_text("utf-8"))
    except (OSError, ValueError):  # transformers has read the folder before: a file that matters was checked there
        found = {}
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return Sampling(**{name: found[name] for name in names if found.get(name) is not None})


def end_ids(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """The tokens that end an answer."""
    ends = getattr(generation_config, "eos_token_id", None)
    found = set(ends if isinstance(ends, list) else [ends])
    return frozenset(token for token in (found | {tokenizer.eos_token_id}) if token is not None)
