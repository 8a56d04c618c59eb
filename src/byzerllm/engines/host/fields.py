"""Reading the fields of a request's JSON body, each by its kind; what is left over at the end is refused by name."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable
from typing import Any

from byzerllm.errors import InvalidInput

LONGEST_NUMBER = 20  # characters of a number in a message


class Fields:
    """The fields of one JSON object. ``null`` stands for a field that is not there."""

    def __init__(self, values: dict[str, Any], where: str = "") -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._where = where
        self._read: set[str] = set()

    def raw(self, name: str) -> Any:
        """The value as it came, or None."""
        self._read.add(name)
        return self._values.get(name)

    def ignore(self, *names: str) -> None:
        """Accept fields that have no bearing on the answer."""
        self._read.update(names)

    def only(self, name: str, *accepted: Any) -> None:
        """A field for which nothing but the given values is possible here."""
        value = self.raw(name)
        if value is not None and value not in accepted:
            listed = " or ".join(json.dumps(value) for value in accepted)
            raise self.bad(name, f"can only be {listed} here")

    def text(self, name: str) -> str | None:
        value = self.raw(name)
        if value is None or isinstance(value, str):
            return value
        raise self.bad(name, "must be a string")

    def required(self, name: str) -> str:
        value = self.text(name)
        if not value:
            raise self.bad(name, "is missing" if value is None else "is empty")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(name, "must be true or false")
        return value

    def whole(self, name: str, low: int, high: int | None = None) -> int | None:
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.bad(name, "must be a whole number")
        self._check_range(name, value, low, high)
        return value

    def number(self, name: str, low: float, high: float | None = None) -> float | None:
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            raise self.bad(name, "must be a number")
        self._check_range(name, value, low, high)
        return float(value)

    def _check_range(self, name: str, value: float, low: float, high: float | None) -> None:
        if value < low or (high is not None and value > high):
            limits = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise self.bad(name, f"is {shown(value)} and must be {limits}")

    def choice(self, name: str, words: Iterable[str], default: str) -> str:
        value = self.text(name)
        words = tuple(words)
        if value is not None and value not in words:
            raise self.bad(name, f"is {value!r} and must be one of {', '.join(words)}")
        return value or default

    def strings(self, name: str) -> tuple[str, ...]:
        """One string or a list of them."""
        value = self.raw(name)
        if value is None:
            return ()
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(item, str) and item for item in found):
            raise self.bad(name, "must be a string or a list of strings, none of them empty")
        return tuple(found)

    def wholes(self, name: str) -> tuple[int, ...]:
        value = self.raw(name)
        if value is None:
            return ()
        if not are_wholes(value):
            raise self.bad(name, "must be a list of whole numbers")
        return tuple(value)

    def object(self, name: str) -> dict[str, Any]:
        value = self.raw(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.bad(name, "must be an object")
        return value

    def objects(self, name: str) -> list[dict[str, Any]]:
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.bad(name, "must be a list of objects")
        return value

    def refuse_rest(self) -> None:
        """Nothing is dropped in silence.

        Raises:
            InvalidInput: a field was sent that nothing has read; the nearest known one is named.
        """
        for name in self._values:
            if name not in self._read:
                close = difflib.get_close_matches(name, sorted(self._read), n=1)
                hint = f"Did you mean {close[0]!r}?" if close else None
                raise InvalidInput(f"'{self._where}{name}' is not supported by this engine.", hint=hint, param=name)

    def bad(self, name: str, what: str) -> InvalidInput:
        """The error for a field: ``'temperature' must be a number.``"""
        return InvalidInput(f"'{self._where}{name}' {what}.", param=self._where + name)


def are_wholes(value: Any) -> bool:
    """Whether it is a list of whole numbers; to Python true and false are some, but to nobody else."""
    return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def shown(value: float) -> str:
    """A number for a message: of a whole one that has no end only the beginning."""
    text = str(value) if isinstance(value, int) else f"{value:g}"
    return text if len(text) <= LONGEST_NUMBER else f"{text[:LONGEST_NUMBER]}..."
