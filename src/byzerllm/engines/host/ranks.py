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
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from byzerllm.engines.host.loading import fail

RANK_VARIABLE = "BYZERLLM_RANK"  # its number, how many there are, and the file by which they find each other
CPU = torch.device("cpu")  # calls are told beside the GPUs' own traffic
LOOPBACK = "lo"


class Leader:
    """A ``Decoder`` whose calls all ranks make."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    @property
    def token_bytes(self) -> int:
        """Of one token, in all ranks together."""
        count: int = self._decoder.token_bytes * dist.get_world_size()
        return count

    @property
    def dtype(self) -> Any:
        return self._decoder.dtype

    def read(self, first: int, starts: list[int], ids: list[list[int]], taken: list[int]) -> Any:
        return self._all("read", first, starts, ids, taken)

    def read_prompt(self, row: int, prompt: Any) -> Any:
        return self._all("read_prompt", row, prompt)

    def alone(self, ids: list[int]) -> Any:
        return self._all("alone", ids)

    def move(self, source: int, target: int, length: int) -> None:
        self._all("move", source, target, length)

    def release(self) -> None:
        self._all("release")

    def resize(self, rows: int, capacity: int) -> None:
        self._all("resize", rows, capacity)

    def obstacle(self) -> Any:
        return self._decoder.obstacle()

    def _all(self, name: str, *args: Any) -> Any:
        dist.broadcast_object_list([name, args], src=0, device=CPU)
        try:
            return getattr(self._decoder, name)(*args)
        except Exception as error:  # noqa: BLE001  # of any kind: the other ranks are in that call, or wait in it for ever
            traceback.print_exc(file=sys.stdout)
            fail(f"rank 0 of the model failed: {type(error).__name__}: {error}")


def follow(decoder: Any) -> None:
    """Make every call that the leader makes, for ever."""
    with torch.inference_mode():
        while True:
            call: list[Any] = [None, None]
            dist.broadcast_object_list(call, src=0, device=CPU)
            getattr(decoder, call[0])(*call[1])


def start_others(count: int, command: Sequence[str], told: Mapping[str, str]) -> str:
    """Start ranks 1 to ``count`` - 1 with the variables ``told``; they end with this process as it ends with them.
    Returns the path of the file by which all find each other."""
    # On no disk, so that it is gone with the ranks. Kept open: GPUs meet there when they first add something up.
    file = os.memfd_create("byzerllm-ranks")
    meeting = f"/proc/self/fd/{file}"
    for rank in range(1, count):
        environ = {**os.environ, **told, RANK_VARIABLE: f"{rank} {count} {meeting}"}
        # Its input is a pipe that closes when this process ends, however that happens.
        process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, pass_fds=(file,))
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
    # By themselves they would listen where the host's name leads to, and they trust whoever connects.
    os.environ |= {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}
    # NCCL's monitor would look each second, for ever, into the file by which they met.
    os.environ["TORCH_NCCL_ENABLE_MONITORING"] = "0"
    backend = "cuda:nccl,cpu:gloo" if device == "cuda" else "gloo"
    if device == "cuda":
        torch.cuda.set_device(rank)
    # An instance may be idle for days, and the ranks that follow wait for the next call all that time.
    dist.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=datetime.timedelta(days=3650)
    )
