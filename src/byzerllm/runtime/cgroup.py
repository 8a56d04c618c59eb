"""The control groups that this process is in, and its engines with it: what of memory they allow, have and have lost.

Linux only: elsewhere there are none. The files are few and small, and the kernel answers from memory, so that they may
be read in an event loop.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_CHUNK = 65536


class _Names(NamedTuple):
    """The files of one version of control groups. ``cache``: the lines of ``memory.stat`` with what can be dropped, to
    which the pages of a file that is mapped belong."""

    limit: str
    used: str
    kills: str
    cache: tuple[str, ...]


_V1 = _Names(
    "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", ("total_active_file", "total_inactive_file")
)
_V2 = _Names("memory.max", "memory.current", "memory.events", ("active_file", "inactive_file"))


@dataclass(frozen=True)
class Group:
    """One of them."""

    folder: Path
    names: _Names

    @property
    def kills(self) -> Path:
        """The file that counts, as ``oom_kill``, the processes that were killed for lack of memory."""
        return self.folder / self.names.kills

    def limit(self) -> int | None:
        """Bytes of memory that it may have; None where there is no limit."""
        return _whole(self.folder / self.names.limit)

    def used(self) -> int | None:
        """Bytes that it has, without what can be dropped; None where it does not tell."""
        used = _whole(self.folder / self.names.used)
        if used is None:
            return None
        return max(0, used - sum(number(self.folder / "memory.stat", name) or 0 for name in self.names.cache))


def groups(root: Path = Path("/")) -> list[Group]:
    """Our own group and those around it. ``root`` is where ``proc`` and ``sys`` are."""
    if sys.platform != "linux":
        return []
    rows = [line.split(":", 2) for line in _read(root / "proc/self/cgroup").decode("utf-8", "replace").splitlines()]
    paths = {controllers: path for _, controllers, path in (row for row in rows if len(row) == 3)}
    first = next((path for controllers, path in paths.items() if "memory" in controllers.split(",")), None)
    if first is not None:
        top, own, names = root / "sys/fs/cgroup/memory", first, _V1
    else:
        top, own, names = root / "sys/fs/cgroup", paths.get("", "/"), _V2
    folder = top / own.strip("/")
    if not folder.is_dir():  # in a container it is what lies at the top
        folder = top
    found = [folder]
    while folder != top:
        folder = folder.parent
        found.append(folder)
    return [Group(folder, names) for folder in found]


def number(path: Path, name: str) -> int | None:
    """The number in the line ``name NUMBER`` of a file; None where there is no such line or file."""
    rows = (line.split() for line in _read(path).splitlines())
    return next((int(row[1]) for row in rows if len(row) == 2 and row[0] == name.encode()), None)


def _read(path: Path) -> bytes:
    """What a file of the kernel's holds; empty where it cannot be read."""
    # By os.pread, as this is called in the event loop, and the kernel answers from memory.
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    text = b""
    try:
        while more := os.pread(file, _CHUNK, len(text)):
            text += more
    except OSError:  # a file of this name that is none of the kernel's
        return b""
    finally:
        os.close(file)
    return text


def _whole(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None
