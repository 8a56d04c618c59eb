"""Parameters that users give as text: how each is read, and what the documentation and an error's hint say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byzerllm.errors import InvalidInput
from byzerllm.spec import parse_bool, parse_float, parse_int

_PLAIN = str.maketrans("", "", "*`")  # the documentation's Markdown

Reader = Callable[[str, str], Any]
"""Name and text of a parameter -> its value; raises InvalidInput."""


@dataclass(frozen=True)
class Form:
    """What a value may look like: ``said`` says it in a few words, ``read`` takes no other."""

    said: str
    read: Reader


@dataclass(frozen=True)
class Parameter:
    """``default`` is what holds where it is not given, in words; ``meaning`` a short line without a full stop."""

    form: Form
    default: str
    meaning: str

    def read(self, name: str, text: str) -> Any:
        """The value of the parameter that was given under ``name``.

        Raises:
            InvalidInput: it cannot be that; the hint says what the parameter is for.
        """
        try:
            return self.form.read(name, text)
        except InvalidInput as error:
            error.hint = error.hint or f"{name}: {self.meaning.translate(_PLAIN)}."
            raise


def whole(low: int, high: int | None = None) -> Form:
    """A whole number in a range."""

    def read(name: str, text: str) -> int:
        value = parse_int(name, text, low)
        if high is not None and value > high:
            raise InvalidInput(f"{name}={text} must be at most {high}.", param=name)
        return value

    return Form(f"whole number from {low}" + (f" to {high}" if high is not None else ""), read)


def number(low: float | None = None) -> Form:
    """A finite number."""
    said = "number" if low is None else f"number from {low:g}"
    return Form(said, lambda name, text: parse_float(name, text, low))


def choice(*words: str) -> Form:
    """One of the words, in any case."""

    def read(name: str, text: str) -> str:
        word = text.strip().lower()
        if word not in words:
            raise InvalidInput(f"{name}={text!r} must be one of {', '.join(words)}.", param=name)
        return word

    return Form(", ".join(words), read)


def read_text(name: str, text: str) -> str:
    """Raises InvalidInput: it is empty."""
    if not text:
        raise InvalidInput(f"{name} is empty.", param=name)
    return text


def read_path(name: str, text: str) -> str:
    """The path with the user's home folder for ``~``. Raises InvalidInput: it is empty, or there is no such user."""
    try:
        return str(Path(read_text(name, text)).expanduser())
    except RuntimeError as error:
        raise InvalidInput(f"{name}={text}: {error}", param=name) from None


BOOLEAN = Form("true, false", parse_bool)
TEXT = Form("text", read_text)
PATH = Form("path", read_path)
