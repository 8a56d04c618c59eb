"""A model in several processes, its matrices divided among them.

The first rank serves and decides; before each of its calls of the model it tells the others, who make the same call
with their parts. So they take part in a batch without knowing of requests: one that is cancelled is simply not in the
next call. A rank that ends takes all with it.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import tempfile
import threading
from typing import Any

import torch
import torch.distributed as dist

from byzerllm.engines.host.loading import fail

RANK_VARIABLE = "BYZERLLM_RANK"  # its number, how many there are, and the file by which they find each other
CPU = torch.device("cpu")  # calls are told beside the GPUs' own traffic


class Leader:
    """A ``Decoder`` whose calls all ranks make."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    @property
    def token_bytes(self) -> int:
        """Of one token, in all ranks together."""
        count: int = self._decoder.token_bytes * dist.get_world_size()
        return count

    def read(self, first: int, starts: list[int], ids: list[list[int]], taken: list[int]) -> Any:
        return self._all("read", first, starts, ids, taken)

    def alone(self, ids: list[int]) -> Any:
        return self._all("alone", ids)

    def move(self, source: int, target: int, length: int) -> None:
        self._all("move", source, target, length)

    def release(self) -> None:
        self._all("release")

    def bytes_for(self, rows: int, length: int) -> int:
        size: int = self._decoder.bytes_for(rows, length) * dist.get_world_size()
        return size

    def kinds(self) -> Any:
        return self._decoder.kinds()

    def _all(self, name: str, *args: Any) -> Any:
        dist.broadcast_object_list([name, args], src=0, device=CPU)
        return getattr(self._decoder, name)(*args)


def follow(decoder: Any) -> None:
    """Make every call that the leader makes, for ever."""
    with torch.inference_mode():
        while True:
            call: list[Any] = [None, None]
            dist.broadcast_object_list(call, src=0, device=CPU)
            getattr(decoder, call[0])(*call[1])


def start_others(count: int, command: list[str], handed: str, variable: str) -> str:
    """Start ranks 1 to ``count`` - 1, which end with this process as it ends with them. Returns the path of the file by
    which all find each other."""
    meeting = os.path.join(tempfile.mkdtemp(prefix="byzerllm-ranks-"), "meeting")
    for rank in range(1, count):
        environ = {**os.environ, variable: handed, RANK_VARIABLE: f"{rank} {count} {meeting}"}
        # Its input is a pipe that closes when this process ends, however that happens.
        process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE)
        threading.Thread(target=_watch, args=(process, rank), daemon=True).start()
    return meeting


def _watch(process: subprocess.Popen[bytes], rank: int) -> None:
    code = process.wait()
    fail(f"rank {rank} of the model ended with code {code}; the lines above say why")


def end_with_leader() -> None:
    """In a rank that follows: end this process when the leader's has ended."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def join(rank: int, count: int, meeting: str, device: str) -> None:
    """Wait until all ranks are there."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    backend = "cuda:nccl,cpu:gloo" if device == "cuda" else "gloo"
    if device == "cuda":
        torch.cuda.set_device(rank)
    # An instance may be idle for days, and the ranks that follow wait for the next call all that time.
    dist.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=datetime.timedelta(days=3650)
    )
