"""How much memory this machine and its GPUs have free, and what holds the rest.

On a cluster it runs on each of the nodes.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from byzerllm.runtime import cgroup
from byzerllm.runtime.base import Room

_SMI_SECONDS = 10.0
_HOLDERS = 3
_MUCH = 0.05  # of all memory: a process that has less is not named
_MIB, _GIB = 1024**2, 1024**3


@dataclass(frozen=True)
class Device:
    """A GPU, by both names that ``CUDA_VISIBLE_DEVICES`` may use."""

    index: str
    uuid: str
    room: Room


def measure(on_gpu: bool) -> tuple[Room, list[Device]]:
    """The memory of the machine, and, where they are asked for, of its GPUs."""
    return machine(), devices() if on_gpu else []


def machine() -> Room:
    """The machine's memory, or what the control groups leave of it. Looks at every process."""
    found = psutil.virtual_memory()
    free, total = found.available, found.total
    for group in cgroup.groups():
        limit, used = group.limit(), group.used()
        if limit is not None and used is not None:
            free, total = min(free, max(0, limit - used)), min(total, limit)
    running = [process.info for process in psutil.process_iter(["pid", "name", "memory_info"])]
    sizes = [(facts["memory_info"].rss, facts["name"], facts["pid"]) for facts in running if facts["memory_info"]]
    return Room(free, total, _largest(sizes, total))


def devices() -> list[Device]:
    """The GPUs, in the driver's order; none where it cannot be asked or does not tell."""
    asked = _smi("--query-gpu=index,uuid,memory.free,memory.total")
    apps = _smi("--query-compute-apps=gpu_uuid,pid,process_name,used_memory")
    return parse_devices(asked, apps)


def parse_devices(gpus: Sequence[Sequence[str]], apps: Sequence[Sequence[str]]) -> list[Device]:
    """The GPUs from the rows of ``nvidia-smi``, whose sizes are in MiB."""
    found = []
    for index, uuid, free, total in gpus:
        if not free.isdigit() or not total.isdigit():
            continue  # [N/A]: it shares the machine's memory
        sizes = [
            (int(used) * _MIB, Path(name).name, int(pid))
            for gpu, pid, name, used in apps
            if gpu == uuid and used.isdigit() and pid.isdigit()
        ]
        room = Room(int(free) * _MIB, int(total) * _MIB, _largest(sizes, int(total) * _MIB))
        found.append(Device(index, uuid, room))
    return found


def _largest(sizes: Iterable[tuple[int, str, int]], total: int) -> tuple[str, ...]:
    most = sorted((s for s in sizes if s[0] >= total * _MUCH), reverse=True)[:_HOLDERS]
    return tuple(f"{name} (process {pid}) {size / _GIB:.1f} GiB" for size, name, pid in most)


def _smi(query: str) -> list[list[str]]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    argv = [tool, query, "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(argv, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    width = query.count(",") + 1
    rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines()]
    return [row for row in rows if len(row) == width]
