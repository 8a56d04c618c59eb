"""Why a worker's process ended or did not become ready, in a few lines; pure."""

from __future__ import annotations

import re
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


def failure(what: str, engine: Engine, log: str) -> DeploymentFailed:
    """The error for ``what`` happened to a worker: the cause first where its engine knows it, then the end of its log.

    ``log`` are the last lines of its latest start; ``details["log"]`` keeps them all.
    """
    cause = (engine.cause(log) or "").rstrip(". ")
    lines = [line for line in without_tracebacks(log) if not cause or cause not in line]
    shown = [_cut(line) for line in lines[-(_WITH_CAUSE if cause else _WITHOUT_CAUSE) :]]
    said = (
        "Its last log lines:\n" + "\n".join(shown)
        if shown
        else "It wrote nothing else to its log."
        if cause
        else "Its log is empty."
    )
    return DeploymentFailed(f"{f'{cause}. ' if cause else ''}{what}. {said}", details={"log": log})


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 4]} ..."


def how(ended: Exit) -> str:
    """How its process ended, as in ``ended with exit code 1``."""
    if ended.code is None:
        return "ended without leaving an exit code"
    if ended.code < 0:
        return f"ended by signal {-ended.code}"
    return f"ended with exit code {ended.code}"


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
