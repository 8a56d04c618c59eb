"""Tokens into text as they come: characters are never cut, and nothing of a stop string gets out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"  # what decoders show for a character of which a token holds only some bytes
LONGEST_CHARACTER = 8  # tokens; more that stay broken are no character


class TextStream:
    """The text of one answer. ``decode`` gives the text of a list of tokens."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = (), *, keep_stop: bool = False):
        self._decode = decode
        self._stops = stops
        self._keep_stop = keep_stop
        self._ids: list[int] = []
        self._start = 0  # a token's text may depend on the one before it (a space): decoding starts one piece earlier
        self._done = 0  # tokens whose text was taken
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that is certain after one more token; may be empty."""
        self._ids.append(token)
        return self._release(self._new_text(final=False))

    def close(self) -> str:
        """What was held back, at the end of the answer."""
        if self.stopped:
            return ""
        rest = self._release(self._new_text(final=True))
        held, self._held = self._held, ""  # empty if that stopped it
        return rest + held

    def _new_text(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._start : self._done])
        after = self._decode(self._ids[self._start :])
        unfinished = after.endswith(BROKEN) and len(self._ids) - self._done < LONGEST_CHARACTER
        if (unfinished and not final) or len(after) <= len(before):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return after[len(before) :]

    def _release(self, new: str) -> str:
        if not self._stops:
            return new
        text = self._held + new
        found = min(((at, stop) for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            at, stop = found
            self.stopped = True
            self._held = ""
            return text[: at + len(stop)] if self._keep_stop else text[:at]
        held = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
