"""How many CPUs this process may use, and how many cores they are."""

from __future__ import annotations

import os
from pathlib import Path


def available() -> float:
    """CPUs that the scheduler and the control group grant to this process; a quota may be a fraction."""
    count = float(len(_allowed()))
    quota = _quota()
    return min(count, quota) if quota else count


def physical() -> int:
    """Cores behind the CPUs of ``available()``, at least 1: two hyper-threads of one core count once."""
    cores = set()
    for cpu in _allowed():
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text("ascii").strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, min(len(cores), int(available())))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _quota() -> float | None:
    """The control group's limit in CPUs, or None. A container sees its own group at the root of the tree."""
    group = _read("/proc/self/cgroup").rpartition("0::")[2].strip().strip("/")
    for folder in {"/sys/fs/cgroup", f"/sys/fs/cgroup/{group}"}:
        limit, _, period = _read(f"{folder}/cpu.max").partition(" ")
        if limit.isdigit() and period.strip().isdigit():
            return int(limit) / int(period)
    old = "/sys/fs/cgroup/cpu/cpu.cfs_"
    limit, period = _read(f"{old}quota_us"), _read(f"{old}period_us")
    return int(limit) / int(period) if limit.isdigit() and period.isdigit() else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text("ascii").strip()
    except OSError:
        return ""
