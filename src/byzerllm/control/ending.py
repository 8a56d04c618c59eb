"""Why a worker's process ended or did not become ready, in a few lines; pure."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

from byzerllm.errors import DeploymentFailed

if TYPE_CHECKING:
    from byzerllm.engines.base import Engine
    from byzerllm.runtime.base import Exit

_WITH_CAUSE, _WITHOUT_CAUSE = 3, 10  # lines of the log
_LONGEST = 240  # characters of one of them

# A logger may have put its own words before each line of a traceback.
_FRAME = re.compile(r'(?P<start>.*?)(?P<indent> *)File ".+", line \d+')
_AROUND_FRAMES = (
    "Traceback (most recent call last):",
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)


def failure(worker: str, engine: Engine, ended: Exit) -> DeploymentFailed:
    """The error for the end of a ``worker``'s process: the cause first where it is known, then the end of its log.

    ``details["log"]`` keeps the last lines of its latest start.
    """
    log = ended.tail
    cause = (_memory(ended) or engine.cause(log) or "").rstrip(". ")
    lines = [line for line in without_tracebacks(log) if not cause or not (cause in line or engine.phase(line))]
    shown = [_cut(line) for line in lines[-(_WITH_CAUSE if cause else _WITHOUT_CAUSE) :]]
    said = (
        "Its last log lines:\n" + "\n".join(shown)
        if shown
        else "It wrote nothing else to its log."
        if cause
        else "Its log is empty."
    )
    return DeploymentFailed(f"{f'{cause}. ' if cause else ''}{worker} {how(ended)}. {said}", details={"log": log})


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 4]} ..."


def _memory(ended: Exit) -> str | None:
    """That the kernel killed it for lack of memory, where that is known."""
    memory = ended.out_of_memory
    if memory is None or ended.code != -signal.SIGKILL:
        return None
    had = f", which had {_gib(memory.peak)}" if memory.peak else ""
    return (
        f"Out of memory: the kernel ended the process{had}; there are {_gib(memory.limit)} "
        "for all. Take a smaller or quantised model, a shorter context or fewer workers"
    )


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"


def how(ended: Exit) -> str:
    """How its process ended, as in ``ended with exit code 1``."""
    memory = ended.out_of_memory
    if ended.code == -signal.SIGKILL:
        return f"ended by signal 9{'' if memory else ' (killed from outside; the kernel does so when memory runs out)'}"
    after = (
        f" after the kernel had killed a process for lack of memory ({_gib(memory.limit)} for all)" if memory else ""
    )
    if ended.code is None:
        return f"ended without leaving an exit code{after}"
    if ended.code < 0:
        return f"ended by signal {-ended.code}{after}"
    return f"ended with exit code {ended.code}{after}"


def without_tracebacks(log: str) -> list[str]:
    """The lines that say something: of a Python traceback only the exception's own is left."""
    kept: list[str] = []
    source = None  # begins a line of source code, which follows on its frame
    for line in log.splitlines():
        frame = _FRAME.match(line)
        if frame:
            source = f"{frame['start']}{frame['indent']}  "
        elif source is not None and line.startswith(source):
            continue
        elif line.strip() and not line.rstrip().endswith(_AROUND_FRAMES):
            source = None
            kept.append(line.rstrip())
    return kept
