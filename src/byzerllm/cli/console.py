"""Where output goes: data to stdout, everything meant for a person to stderr."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, TextIO

from byzerllm.errors import ByzerError, Conflict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CLEAR_LINE = "\r\x1b[K"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Console:
    """The two streams of a command. On a terminal, a line of progress is overwritten by what follows it."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self.out_is_terminal = self._out.isatty()
        self.err_is_terminal = self._err.isatty()
        self._progress_shown = False

    def data(self, text: str, end: str = "\n") -> None:
        """Write to stdout, at once."""
        self._clear_progress()
        self._out.write(text + end)
        self._out.flush()

    def raw(self, content: bytes) -> None:
        """Write bytes to stdout as they are, at once."""
        self._out.buffer.write(content)
        self._out.buffer.flush()

    def json(self, value: Any) -> None:
        self.data(json.dumps(value, indent=4, ensure_ascii=False))

    def note(self, text: str) -> None:
        """A line for the person, on stderr."""
        self._clear_progress()
        self._write_err(text + "\n")

    def progress(self, text: str) -> None:
        """A line that stands until the next one."""
        if not self.err_is_terminal:
            return self.note(text)
        self._clear_progress()
        width = os.get_terminal_size(self._err.fileno()).columns
        self._write_err(text[: width - 1] if width else text)  # a wrapped line could not be cleared
        self._progress_shown = True

    def event(self, name: str, event: Mapping[str, Any]) -> None:
        """What the server tells while it works on the instance ``name``."""
        match event["event"]:
            case "warning":
                self.note(f"byzerllm: warning: {event['message']}")
            case "note":
                self.note(event["message"])
            case "progress":
                self.progress(f"{name}: {event['message']}")

    def dim(self, text: str) -> None:
        """Text beside the data proper, shown on a terminal only."""
        if self.err_is_terminal:
            self._write_err(f"{_DIM}{text}{_PLAIN}")

    def error(self, error: ByzerError) -> None:
        """What went wrong, and what to do about it."""
        if isinstance(error, Conflict) and error.details.get("differences"):
            rows = [(d["name"], d["current"], d["requested"]) for d in error.details["differences"]]
            self.note(table(("PARAMETER", "CURRENT", "REQUESTED"), rows))
        self.note(f"byzerllm: error: {error.message}")
        if error.hint:
            self.note(f"  {error.hint}")

    def _clear_progress(self) -> None:
        if self._progress_shown:
            self._progress_shown = False
            self._write_err(_CLEAR_LINE)

    def _write_err(self, text: str) -> None:
        self._err.write(text)
        self._err.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns padded to their widest cell."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)
