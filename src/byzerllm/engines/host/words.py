"""A model's tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from byzerllm.engines.host.backend import Sampling
from byzerllm.engines.host.tool_calls import format_of
from byzerllm.errors import ContextExceeded, InvalidInput

NO_TEMPLATE_HINT = "Deploy it with backend.chat_template=FILE (a Jinja template), or use /v1/completions."


class Words:
    """Text to tokens and back. ``tokenizer`` is transformers', ``size`` how many tokens the model knows;
    ``template`` is the chat template that holds instead of the model's own."""

    def __init__(self, tokenizer: Any, size: int, folder: str, template: str | None) -> None:
        self._tokenizer = tokenizer
        self._size = size
        self._folder = folder
        if template is not None:
            tokenizer.chat_template = template

    @property
    def tool_format(self) -> str | None:
        return format_of(self._template_text())

    def _template_text(self) -> str:
        template = self._tokenizer.chat_template
        return "".join(template.values()) if isinstance(template, dict) else template or ""

    def encode(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        wrong = next((token for token in ids if not 0 <= token < self._size), None)
        if wrong is not None:
            raise InvalidInput(f"{wrong} is no token of this model: it has 0 to {self._size - 1}.", param="prompt")
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return text

    def chat(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> list[int]:
        """The tokens of the messages in the chat template.

        Raises:
            InvalidInput: there is none, or it does not take these messages or tools.
        """
        self.check_template(tools)
        plain = [{**message, "content": text_of(message.get("content"))} for message in messages]
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(plain, tools=tools, return_dict=False, **options)
        except refusals() as error:
            raise refused(error) from None
        return ids

    def check_template(self, tools: Any) -> None:
        """Raises InvalidInput: there is no chat template, or it has no place for tools."""
        if not self._template_text():
            raise InvalidInput(
                f"The model has no chat template: neither tokenizer_config.json nor chat_template.jinja in "
                f"{self._folder} holds one.",
                hint=NO_TEMPLATE_HINT,
                param="messages",
            )
        if tools and "tools" not in self._template_text():
            raise InvalidInput("The model's chat template has no place for tools.", param="tools")


def refusals() -> tuple[type[Exception], ...]:
    """What a chat template raises for messages that it does not take."""
    import jinja2

    return (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)


def refused(error: Exception) -> InvalidInput:
    return InvalidInput(f"The model's chat template does not take these messages: {error}.", param="messages")


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


def read_template(value: str | None) -> str | None:
    """``backend.chat_template``: a file's path, or the template itself."""
    if value is None or "{" in value:
        return value
    return Path(value).expanduser().read_text("utf-8")


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
