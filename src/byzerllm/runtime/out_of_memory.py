"""Whether the kernel has killed a process for lack of memory. It counts that, and tells the unprivileged no more.

Linux only: elsewhere there is nothing to be read. The counter is that of our own control group, which the engines are
in too, else the machine's; both count each process that was killed, whichever limit was reached.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from byzerllm.runtime import cgroup

RECENT = 60.0  # seconds; a process that has much memory takes some to end


class Kills:
    """The kills that were counted lately, each until the end of a process is explained by it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._unexplained: list[float] = []  # when each was noticed

    def notice(self, count: int, now: float) -> None:
        """``count`` is how many there have ever been."""
        self._unexplained = [at for at in self._unexplained if now - at <= RECENT]
        self._unexplained += [now] * (count - self._count)
        self._count = count

    def since(self, start: float) -> bool:
        """Whether there is one that a process which was started then may have met."""
        return any(at > start for at in self._unexplained)

    def take(self, start: float) -> bool:
        """The same, for a process that was killed: that one explains no other end."""
        found = next((at for at in self._unexplained if at > start), None)
        if found is not None:
            self._unexplained.remove(found)
        return found is not None


@dataclass(frozen=True)
class Kernel:
    """The file in which it counts kills, and our control groups, which have limits."""

    counter: Path | None
    groups: tuple[cgroup.Group, ...]

    @classmethod
    def here(cls, root: Path = Path("/")) -> Kernel:
        """Of this process. ``root`` is where ``proc`` and ``sys`` are."""
        groups = cgroup.groups(root)
        counters = [*(group.kills for group in groups), root / "proc" / "vmstat"]
        found = next((path for path in counters if cgroup.number(path, "oom_kill") is not None), None)
        return cls(found, tuple(groups))

    def kills(self) -> int:
        """How many processes it has killed for lack of memory since the group, or the machine, was started."""
        return (cgroup.number(self.counter, "oom_kill") or 0) if self.counter else 0

    def limit(self) -> int:
        """The bytes of memory that there are: the machine's, or as many as the control groups allow."""
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min([whole, *(limit for group in self.groups if (limit := group.limit()) is not None)])
