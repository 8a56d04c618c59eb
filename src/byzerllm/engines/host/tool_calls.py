"""Tool calls in the text of a model: each family writes them in its own way.

Which way is seen in the chat template, which shows the model its own earlier calls. Where none of the known ways is
seen the text is handed over as it is, and no call can be forced.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from byzerllm.engines.host.backend import ForcedCalls, Function
from byzerllm.engines.host.text import overlap


class Call(NamedTuple):
    """A function and its arguments as JSON text."""

    name: str
    arguments: str

    def as_openai(self) -> dict[str, Any]:
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": self._asdict()}


@dataclass(frozen=True)
class Format:
    """``marker`` is how a call begins; ``only_first``: it must stand at the answer's beginning. ``parts`` takes apart
    what begins there into the JSON values of the calls and the text beside them, and raises ``ValueError`` if it is
    something else. A call is written as the pieces ``before``, its JSON with the arguments under the key ``arguments``,
    and the pieces ``after``; ``between`` stands between two."""

    marker: str
    only_first: bool
    parts: Callable[[str], tuple[list[Any], str]]
    arguments: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    between: str = "\n"


_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_JSON = json.JSONDecoder()
_NAME, _STRING = "NAME", r'"(?:[^"\\]|\\.)*"'


def _hermes(text: str) -> tuple[list[Any], str]:
    values, beside = [], ""
    while (at := text.find(_OPEN)) >= 0:
        beside += text[:at]
        body = text[at + len(_OPEN) :].lstrip()
        value, end = _JSON.raw_decode(body)  # what closes a call may also stand in its arguments
        values.append(value)
        text = body[end:].lstrip()
        if text and not text.startswith(_CLOSE):
            raise ValueError("the call goes on behind its JSON")
        text = text.removeprefix(_CLOSE)
    return values, (beside + text).rstrip()


def _llama(text: str) -> tuple[list[Any], str]:
    values = []
    text = text.strip()
    while text:
        value, end = _JSON.raw_decode(text)
        values.append(value)
        text = text[end:].lstrip("; \n")
    return values, ""


FORMATS = {
    # Qwen 2.5 and 3, Hermes
    "hermes": Format(_OPEN, False, _hermes, "arguments", before=(_OPEN, "\n"), after=("\n", _CLOSE)),
    # Llama 3.1 and later
    "llama": Format('{"name"', True, _llama, "parameters", between="; "),
}
# A tokenizer may have a token for each; some take these for control tokens, which have no text.
MARKERS = (_OPEN, _CLOSE)


def format_of(template: str) -> str | None:
    """How a model with this chat template writes calls, or None."""
    if _OPEN in template:
        return None if "<function=" in template else "hermes"
    return "llama" if '{"name": ' in template and "<|eot_id|>" in template else None


class Reader(Protocol):
    """Splits one answer into text and ``calls``; ``whole``: none of these is cut short."""

    @property
    def calls(self) -> list[Call]: ...

    @property
    def whole(self) -> bool: ...

    def feed(self, text: str) -> str:
        """The text that is certainly none of a call."""
        ...

    def close(self) -> str:
        """At the end: the text after the calls, or that turned out to be none."""
        ...

    def news(self) -> list[dict[str, Any]]:
        """What has come of calls since it was last asked, as ``tool_calls`` of a chunk."""
        ...


class ToolReader:
    """A ``Reader`` of what a model writes as it likes. Text is let through as soon as it cannot be the beginning of a
    call; the calls are known at the end. Of ``several`` only the first one is taken if the client wants one at most."""

    whole = True

    def __init__(self, name: str, *, several: bool = True) -> None:
        self._format = FORMATS[name]
        self._several = several
        self._held = ""
        self._in_call = False
        self._passed = False  # some text was let through
        self.calls: list[Call] = []

    def feed(self, text: str) -> str:
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
        held, self._held = self._held, ""
        if not self._in_call:
            return held
        try:
            found, rest = self._format.parts(held)
            calls = [_call(value) for value in found]
        except (ValueError, RecursionError):
            return held
        self.calls = calls if self._several else calls[:1]
        return rest if self._passed else rest.lstrip()

    def news(self) -> list[dict[str, Any]]:
        """All of them at the end."""
        return [{"index": i, **call.as_openai()} for i, call in enumerate(self.calls)]


class ForcedReader:
    """A ``Reader`` of what ``grammar`` has forced: nothing but calls, of which each part is handed on as it comes. One
    that was cut off has its arguments as far as they came, as OpenAI has it."""

    def __init__(self, name: str) -> None:
        before, after = map(re.escape, _head(_NAME, FORMATS[name]).split(_NAME))
        self._head = re.compile(f"{before}({_STRING}){after}")
        self._held = ""
        self._begun: list[tuple[str, list[str]]] = []  # names, and the parts of their arguments
        self._news: list[dict[str, Any]] = []
        self._depth = 0  # of brackets, outside of strings
        self._quoted = self._escaped = False
        self.whole = True

    @property
    def calls(self) -> list[Call]:
        return [Call(name, "".join(parts)) for name, parts in self._begun]

    def feed(self, text: str) -> str:
        self._held += text
        while self._begin() if self.whole else self._go_on():
            pass
        return ""

    def close(self) -> str:
        return ""

    def news(self) -> list[dict[str, Any]]:
        news, self._news = self._news, []
        return news

    def _begin(self) -> bool:
        """Whether the next call begins in what has come."""
        head = self._head.search(self._held)
        if head is None:
            return False
        self._held = self._held[head.end() :]
        self.whole = False
        name = json.loads(head[1])
        self._news.append({"index": len(self._begun), **Call(name, "").as_openai()})
        self._begun.append((name, []))
        return True

    def _go_on(self) -> bool:
        """Whether the arguments of the call end in what has come."""
        end = next((i for i, letter in enumerate(self._held, 1) if self._is_last(letter)), None)
        self.whole = end is not None
        part, self._held = self._held[:end], self._held[len(self._held) if end is None else end :]
        if part:
            self._begun[-1][1].append(part)
            self._news.append({"index": len(self._begun) - 1, "function": {"arguments": part}})
        return self.whole

    def _is_last(self, letter: str) -> bool:
        """Whether the arguments, an object, end with this letter."""
        if self._quoted:
            self._quoted = self._escaped or letter != '"'
            self._escaped = letter == "\\" and not self._escaped
            return False
        self._quoted = letter == '"'
        self._depth += (letter in "{[") - (letter in "]}")
        return not self._depth and letter == "}"


def _call(value: Any) -> Call:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("a call is an object with a name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, allow_nan=False)  # 1e999 is JSON, and no number here
    return Call(value["name"], arguments)


def grammar(forced: ForcedCalls, token_of: Callable[[str], int | None]) -> str:
    """What allows nothing but such calls, in llguidance's form of Lark. ``token_of`` tells which control token a piece
    of a call is, None if it is plain text."""

    def symbol(piece: str) -> str:
        token = token_of(piece)
        return json.dumps(piece) if token is None else f"<[{token}]>"

    form = FORMATS[forced.format]
    rules = [f"function_{number}" for number in range(len(forced.functions))]
    more = f" ({symbol(form.between)} call)*" if forced.several else ""
    call = [*map(symbol, form.before), f"({' | '.join(rules)})", *map(symbol, form.after)]
    lines = [f"start: call{more}", f"call: {' '.join(call)}"]
    for rule, function in zip(rules, forced.functions, strict=True):
        head = _head(json.dumps(function.name, ensure_ascii=False), form)
        lines.append(f'{rule}: {json.dumps(head)} %json {json.dumps(_schema(function))} "}}"')
    return "\n".join(lines)


def _head(name: str, form: Format) -> str:
    """What stands before the arguments of a forced call; ``name`` is in JSON."""
    return f'{{"name": {name}, "{form.arguments}": '


def _schema(function: Function) -> dict[str, Any]:
    # Spaces as in chat templates, which show calls to the model in this way; without an end of them they could be all
    # that a weak model writes.
    spaces = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    options = {**spaces, "lenient": not function.strict}
    return {"type": "object", **function.parameters, "x-guidance": options}
