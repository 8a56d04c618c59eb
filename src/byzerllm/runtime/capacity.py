"""What this machine has for engines, and the choice of the devices for one worker."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from byzerllm.engines import cpus
from byzerllm.errors import InvalidInput
from byzerllm.runtime.base import Capacity

if TYPE_CHECKING:
    from collections.abc import Mapping

_DRIVER = Path("/proc/driver/nvidia/gpus")
_SMI_SECONDS = 10.0
_ROUNDING = 1e-9


def measure() -> Capacity:
    """The CPUs and GPUs that this process may use. Reads the disk and may start ``nvidia-smi``: call it once."""
    return Capacity(cpus=cpus.available(), gpus=float(len(visible_gpus())))


def visible_gpus(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them.

    GPU number i of the runtime is the i-th of these.
    """
    installed = tuple(str(number) for number in range(_installed()))
    chosen = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    return installed if chosen is None else among(installed, chosen)


def among(installed: tuple[str, ...], chosen: str) -> tuple[str, ...]:
    """What ``CUDA_VISIBLE_DEVICES=chosen`` leaves of the installed devices; as in CUDA, the first bad name ends it."""
    kept: list[str] = []
    for name in (part.strip() for part in chosen.split(",")):
        known = name in installed or (bool(installed) and name.startswith(("GPU-", "MIG-")))
        if not known or name in kept:
            break
        kept.append(name)
    return tuple(kept)


def _installed() -> int:
    try:
        return len(list(_DRIVER.iterdir()))
    except OSError:
        pass  # no driver here, or one that has no such folder (WSL)
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=_SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0  # the tool without a working driver: no GPU can be used
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def assign_gpus(free: Mapping[int, float], wanted: float) -> tuple[int, ...] | None:
    """Devices for one worker, or None if there are too few. ``free`` says how much of each is free, from 0 to 1.

    A fraction is taken from one device, the fullest that still has it; whole devices are taken lowest number first.

    Raises:
        InvalidInput: more than one device, but not a whole number of them.
    """
    if wanted <= 0:
        return ()
    if wanted < 1:
        fitting = [(left, number) for number, left in free.items() if left + _ROUNDING >= wanted]
        return (min(fitting)[1],) if fitting else None
    count = round(wanted)
    if abs(wanted - count) > _ROUNDING:
        raise InvalidInput(
            f"--gpus_per_worker {wanted:g} must be a whole number, or a fraction below 1.", param="gpus_per_worker"
        )
    whole = sorted(number for number, left in free.items() if left + _ROUNDING >= 1)
    return tuple(whole[:count]) if len(whole) >= count else None
