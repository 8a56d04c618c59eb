"""The log of one worker: a file that its process writes and that survives several starts."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ROTATE_AT = 10 * 1024 * 1024
LAST_WORDS_LINES = 400  # the cause may stand before the tracebacks of several processes
LAST_WORDS_BYTES = 32 * 1024
_BLOCK = 64 * 1024
START_LINE = b"==== byzerllm: worker "


class WorkerLog:
    """A log file. Each start of the process begins with a line of its own, so that its lines can be told apart."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open_for_start(self, worker_id: str) -> int:
        """A descriptor for the process to write to, which the caller closes. Only this user can read the file.

        A file of over 10 MiB is put aside as ``.log.1``.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if self.path.stat().st_size > ROTATE_AT:
                self.path.replace(self.path.with_name(self.path.name + ".1"))
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        now = time.strftime("%Y-%m-%d %H:%M:%S").encode()
        os.write(file, START_LINE + worker_id.encode() + b" started at " + now + b"\n")
        return file

    def last_words(self) -> str:
        """The last 400 lines of the latest start, at most 32 KiB; empty if it said nothing."""
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            size = os.fstat(file).st_size
            read = LAST_WORDS_BYTES + len(START_LINE)
            text = os.pread(file, read, max(0, size - read))
        finally:
            os.close(file)
        start = text.rfind(START_LINE)
        if start >= 0:
            text = text[start:].partition(b"\n")[2]
        elif size > read:
            text = text.partition(b"\n")[2] or text  # the first line is not whole
        lines = text[-LAST_WORDS_BYTES:].decode("utf-8", "replace").splitlines()
        return "\n".join(lines[-LAST_WORDS_LINES:])


class Follower:
    """Reads a log from its tail on. Holds no file open between two calls, each of which blocks: use a thread.

    ``position`` is what another follower needs to go on where this one is.
    """

    def __init__(self, log: WorkerLog, position: tuple[int, int] = (0, 0)) -> None:
        self._path = log.path
        self._inode, self._offset = position

    @property
    def position(self) -> tuple[int, int]:
        return self._inode, self._offset

    def tail(self, lines: int) -> bytes | None:
        """The last ``lines`` lines; None if there is no log."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                self._inode, self._offset = status.st_ino, status.st_size
                text, begin = b"", status.st_size
                while begin and text[:-1].count(b"\n") < lines:
                    end, begin = begin, max(0, begin - _BLOCK)
                    file.seek(begin)
                    text = file.read(end - begin) + text
        except FileNotFoundError:
            return None
        kept = text.splitlines(keepends=True)
        return b"".join(kept[-lines:]) if lines else b""

    def more(self) -> bytes:
        """What was added since the last call, at most 64 KiB. A log that was put aside or emptied begins anew."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset = status.st_ino, 0
                file.seek(self._offset)
                text = file.read(_BLOCK)
        except FileNotFoundError:
            return b""
        self._offset += len(text)
        return text
