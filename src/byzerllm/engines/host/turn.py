"""Workers that share a GPU start one after the other.

vLLM takes what other processes take of the GPU while it starts for its own use, and what they give back for an error.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


class Turn:
    """Held from its making until ``end``, or until the process is gone; another one waits for it in the meantime, and
    calls ``waiting`` before."""

    def __init__(self, path: Path, waiting: Callable[[], None]) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def end(self) -> None:
        """The next one's turn. To unlock and not only to close: processes that were forked meanwhile hold it too."""
        fcntl.flock(self._file, fcntl.LOCK_UN)


def path_of(device: str) -> Path:
    """Where the workers of this user that share the device, as ``CUDA_VISIBLE_DEVICES`` names it, meet."""
    return Path(tempfile.gettempdir(), f"byzerllm-{os.getuid()}-gpu-{device.replace('/', '-')}.lock")
