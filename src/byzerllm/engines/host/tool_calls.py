"""Tool calls in the text of a model: each family writes them in its own way.

Which way is seen in the chat template, which shows the model its own earlier calls. Where none of the known ways is
seen the text is handed over as it is.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from byzerllm.engines.host.text import overlap


class Call(NamedTuple):
    """A function and its arguments as JSON text."""

    name: str
    arguments: str

    def as_openai(self, index: int | None = None) -> dict[str, Any]:
        call = {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": self._asdict()}
        return call if index is None else {"index": index, **call}


@dataclass(frozen=True)
class Format:
    """``marker`` is how a call begins; ``only_first``: it must stand at the answer's beginning. ``parts`` takes apart
    what begins there into the JSON of each call, and the text that is beside them."""

    marker: str
    only_first: bool
    parts: Callable[[str], tuple[list[str], str]]


_HERMES_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)


def _hermes(text: str) -> tuple[list[str], str]:
    return _HERMES_CALL.findall(text), _HERMES_CALL.sub("", text).rstrip()


def _llama(text: str) -> tuple[list[str], str]:
    parts = text.split("; {")
    return [part for part in parts[:1] + ["{" + part for part in parts[1:]] if part.strip()], ""


FORMATS = {
    "hermes": Format("<tool_call>", False, _hermes),  # Qwen 2.5 and 3, Hermes
    "llama": Format('{"name"', True, _llama),  # Llama 3.1 and later
}


def format_of(template: str) -> str | None:
    """How a model with this chat template writes calls, or None."""
    if "<tool_call>" in template:
        return None if "<function=" in template else "hermes"
    return "llama" if '{"name": ' in template and "<|eot_id|>" in template else None


class ToolReader:
    """Splits one answer into text and calls. Text is let through as soon as it cannot be the beginning of a call."""

    def __init__(self, name: str) -> None:
        self._format = FORMATS[name]
        self._held = ""
        self._in_call = False
        self._passed = False  # some text was let through
        self.calls: list[Call] = []

    def feed(self, text: str) -> str:
        """The text that is certainly none of a call."""
        self._held += text
        if self._in_call:
            return ""
        at = self._begin()
        self._in_call = at is not None
        free = at if at is not None else len(self._held) - self._undecided()
        out = self._held[:free].rstrip()  # space is held too: before a call it is none of the text
        self._held = self._held[free if self._in_call else len(out) :]
        self._passed = self._passed or bool(out)
        return out

    def _begin(self) -> int | None:
        at = self._held.find(self._format.marker)
        first = not self._passed and not self._held[: max(at, 0)].strip()
        return at if at >= 0 and (first or not self._format.only_first) else None

    def _undecided(self) -> int:
        if not self._format.only_first:
            return overlap(self._held, self._format.marker)
        begun = self._held.lstrip()
        return len(self._held) if not self._passed and self._format.marker.startswith(begun) else 0

    def close(self) -> str:
        """At the end: fills ``calls``, and returns the text after them, or that turned out to be none."""
        held, self._held = self._held, ""
        found, rest = self._format.parts(held) if self._in_call else ([], "")
        calls = [_call(text) for text in found]
        if not calls or None in calls:
            return held
        self.calls = [call for call in calls if call]
        return rest if self._passed else rest.lstrip()


def _call(text: str) -> Call | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return Call(value["name"], arguments)
