"""Telling a process from a later one that has the same number, without touching a disk."""

from __future__ import annotations

import logging
import os
import sys

import psutil

log = logging.getLogger(__name__)

# The times of one process are compared as they were read; this is for their way through JSON only.
_SAME = 0.001


def creation_time(pid: int) -> float:
    """When the process was created: on Linux in seconds since the machine's start, which no change of the clock moves.

    0.0 if it is gone already; no process has that time.
    """
    found = _look(pid)
    return found[1] if found else 0.0


def runs(pid: int, created: float) -> bool:
    """Whether that process still runs; a zombie does not."""
    found = _look(pid)
    return found is not None and found[0] and abs(found[1] - created) < _SAME


def is_other(pid: int, created: float) -> bool:
    """Whether the number has passed to another process, so that the old one and its whole group are gone."""
    found = _look(pid)
    return found is not None and abs(found[1] - created) >= _SAME


def take_normal_priority() -> None:
    """Ray's workers give way to every other process of their node. What requests wait for must not, if it may."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except PermissionError:
        log.info("others go before this process: RAY_worker_niceness=0 in the environment of ray start ends that")


def _look(pid: int) -> tuple[bool, float] | None:
    """Whether a process is alive (and no zombie), and its creation time; None if there is none of that number."""
    return _look_in_proc(pid) if sys.platform == "linux" else _ask_system(pid)


def _look_in_proc(pid: int) -> tuple[bool, float] | None:
    # By os.pread, as this is called in the event loop and /proc answers from memory.
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fields = os.pread(file, 4096, 0).rpartition(b")")[2].split()  # the name before it may hold anything
    except ProcessLookupError:
        return None
    finally:
        os.close(file)
    return fields[0] not in (b"Z", b"X"), int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _ask_system(pid: int) -> tuple[bool, float] | None:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE, process.create_time()
    except psutil.ZombieProcess:
        return False, 0.0
    except psutil.Error:
        return None
