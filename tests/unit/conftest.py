"""Unit tests reach no network, no process, no Ray and no clock. This file makes every attempt a failure.

Time is an argument of the code under test. Code of byzerllm that reads the clock itself fails here; pytest, asyncio
and hypothesis may. What needs a real socket, process or wait is an integration test.
"""

from __future__ import annotations

import asyncio.base_events
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable

_CLOCKS = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns")
_FORBIDDEN: tuple[tuple[Any, str, str], ...] = (
    (socket.socket, "connect", "connected a socket"),
    (socket.socket, "connect_ex", "connected a socket"),
    (socket.socket, "bind", "bound a socket"),
    (socket, "getaddrinfo", "looked up a host name"),
    (uvloop.Loop, "__init__", "made a uvloop loop, whose sockets this guard cannot see: use asyncio.run"),
    (subprocess.Popen, "__init__", "started a process"),
    (os, "fork", "started a process"),
    (os, "posix_spawn", "started a process"),
    (time, "sleep", "slept"),
)


@pytest.fixture(autouse=True)
def _pure(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name, deed in _FORBIDDEN:
        monkeypatch.setattr(owner, name, _refusal(deed))
    for name in _CLOCKS:
        monkeypatch.setattr(time, name, _guarded(name, getattr(time, name)))
    loop = asyncio.base_events.BaseEventLoop
    monkeypatch.setattr(loop, "time", _guarded("loop.time", loop.time))
    monkeypatch.setitem(sys.modules, "ray", None)  # "import ray" raises ImportError


def _refusal(deed: str) -> Callable[..., None]:
    def refuse(*args: object, **kwargs: object) -> None:
        # pytest.fail's exception is no Exception: code under test that handles errors cannot swallow it.
        pytest.fail(f"a unit test {deed}; such a test belongs to tests/integration")

    return refuse


def _guarded(name: str, clock: Callable[..., Any]) -> Callable[..., Any]:
    def read(*args: object) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.partition(".")[0] == "byzerllm":
            pytest.fail(f"{caller} read the clock ({name}) in a unit test: pass the time in")
        return clock(*args)

    return read
