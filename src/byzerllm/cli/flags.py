"""What a flag is: its kind turns what was typed, or what a ``--file`` says, into a value, and shows it masked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from byzerllm.errors import InvalidInput
from byzerllm.spec import MASK, as_text, is_reference, looks_secret, mask, parse_bool, parse_params

_URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class Text:
    """A plain value, kept as it was typed."""

    options: ClassVar[dict[str, Any]] = {"metavar": "TEXT"}  # for argparse

    def parse(self, flag: str, given: Any) -> Any:
        """The value of what was given. ``flag`` is how an error names it.

        Raises:
            InvalidInput: it is not of this kind.
        """
        if not isinstance(given, str):
            raise InvalidInput(f"{flag} must be a single value.", param=flag)
        return given

    def merge(self, from_file: Any, typed: Any) -> Any:
        """The value when a file and the command line both give one."""
        return typed

    def show(self, value: Any) -> str:
        """The value in the banner, without secrets."""
        return _URL_CREDENTIALS.sub(MASK, str(value))


class Secret(Text):
    """A key: shown only when it refers to where the real one is."""

    def show(self, value: Any) -> str:
        return MASK if value and not is_reference(value) else str(value)


class Whole(Text):
    """A whole number."""

    options: ClassVar[dict[str, Any]] = {"metavar": "N"}
    convert: Any = int
    what = "a whole number"

    def parse(self, flag: str, given: Any) -> Any:
        try:
            return self.convert(super().parse(flag, given))
        except ValueError:
            raise InvalidInput(f"{flag} {given!r} must be {self.what}.", param=flag) from None


class Number(Whole):
    """A number."""

    options: ClassVar[dict[str, Any]] = {"metavar": "X"}
    convert = float
    what = "a number"


class Switch(Text):
    """On when it is typed; in a file true or false."""

    options: ClassVar[dict[str, Any]] = {"action": "store_true"}

    def parse(self, flag: str, given: Any) -> Any:
        return True if given is True else parse_bool(flag, super().parse(flag, given))


class Words(Text):
    """A list: in JSON or with commas, or a list in a file."""

    options: ClassVar[dict[str, Any]] = {"metavar": "LIST"}

    def parse(self, flag: str, given: Any) -> Any:
        words = given
        if isinstance(given, str):
            words = _json_list(flag, given) if given.lstrip().startswith("[") else given.split(",")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InvalidInput(f"{flag} must be a list of words.", param=flag)
        return [word.strip() for word in words]


def _json_list(flag: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{flag} {text!r} is no JSON list: {error}.", param=flag) from None


class Several(Text):
    """Texts, one or more each time that the flag is typed."""

    options: ClassVar[dict[str, Any]] = {"nargs": "+", "action": "extend", "metavar": "TEXT"}

    def parse(self, flag: str, given: Any) -> Any:
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InvalidInput(f"{flag} must be a list of texts.", param=flag)
        return texts

    def show(self, value: Any) -> str:
        return ", ".join(map(super().show, value))


class Params(Text):
    """``name=value`` words, which add up over the file and each time the flag is typed; the last one wins."""

    options: ClassVar[dict[str, Any]] = {"nargs": "+", "action": "extend", "metavar": "NAME=VALUE"}

    def parse(self, flag: str, given: Any) -> Any:
        if isinstance(given, dict):
            return {key: self._scalar(f"{flag} {key}", value) for key, value in given.items()}
        tokens = [given] if isinstance(given, str) else given
        if not all(isinstance(token, str) for token in tokens):
            raise InvalidInput(f"{flag} must be name: value, or a list of name=value.", param=flag)
        return parse_params(tokens)

    def merge(self, from_file: Any, typed: Any) -> Any:
        return {**from_file, **typed}

    def show(self, value: Any) -> str:
        masked = mask(value, filter(looks_secret, value))
        return str({name: super(Params, self).show(text) for name, text in masked.items()})

    def _scalar(self, flag: str, value: Any) -> str:
        if isinstance(value, (dict, list)):
            raise InvalidInput(
                f"{flag} must be a single value.",
                hint="Write the whole name before the colon, as in 'saas.model: gpt-4o'.",
                param=flag,
            )
        return as_text(value)


class Amounts(Params):
    """``name=number`` words, which add up as parameters do."""

    options: ClassVar[dict[str, Any]] = {**Params.options, "metavar": "NAME=AMOUNT"}

    def parse(self, flag: str, given: Any) -> Any:
        if isinstance(given, dict):
            texts = {name: self._scalar(f"{flag} {name}", text) for name, text in given.items()}
        else:
            words = " ".join(map(str, [given] if isinstance(given, str) else given)).split()
            texts = {name: text for name, _, text in (word.partition("=") for word in words)}
        return {name: self._amount(flag, name, text) for name, text in texts.items()}

    def show(self, value: Any) -> str:
        return str(value)

    def _amount(self, flag: str, name: str, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise InvalidInput(
                f"{flag} {name}={text} is not of the form name=number.",
                hint="For example: --resources TPU=1",
                param=flag,
            ) from None


TEXT, SECRET, WHOLE, NUMBER, SWITCH, WORDS, SEVERAL, PARAMS, AMOUNTS = (
    Text(), Secret(), Whole(), Number(), Switch(), Words(), Several(), Params(), Amounts(),
)  # fmt: skip


@dataclass(frozen=True)
class Flag:
    """A flag of a command, written ``--name``; ``default`` is its value when neither typed nor in the file.

    A ``positional`` one is a bare word.
    """

    name: str
    kind: Text = TEXT
    default: Any = ""
    choices: tuple[str, ...] = ()
    required: bool = False
    positional: bool = False
    short: str | None = None


MODEL = Flag("model", required=True)

# Every command has these.
COMMON = (Flag("ray_address", default="auto"), Flag("file", default=None))
