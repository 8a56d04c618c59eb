"""Where ``env:NAME`` values come from: the command that deployed the instance, then the server's own environment.

The values live in memory only. ``Memory`` is what outlives a server that crashed, so that the next one has them:
an anonymous file (no name, no disk) that the supervisor holds, or a Ray cluster's own memory. Without it they are gone
with the process, and the instance says what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

import msgspec


class Memory(Protocol):
    """A few KiB that outlive the server's process. ``write`` returns at once."""

    def read(self) -> bytes: ...

    def write(self, data: bytes) -> None: ...


class FileMemory:
    """An open file without a name."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> bytes:
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def write(self, data: bytes) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)


class Secrets:
    """Values of environment variables by instance; ``memory`` hands them to the next server."""

    def __init__(self, memory: Memory | None) -> None:
        self._memory = memory
        data = memory.read() if memory is not None else b""
        self._values = msgspec.json.decode(data, type=dict[str, dict[str, str]]) if data else {}

    def put(self, instance: str, values: Mapping[str, str]) -> Mapping[str, str]:
        """Remember what a deploy command sent, beside what is there; returns what was there, for ``reset``."""
        before = self._values.get(instance, {})
        if values:
            self._values[instance] = {**before, **values}
            self._write()
        return before

    def reset(self, instance: str, values: Mapping[str, str]) -> None:
        """Back to what ``put`` returned; with nothing, the instance is forgotten."""
        if self._values.get(instance, {}) != values:
            self._values[instance] = dict(values)
            if not values:
                del self._values[instance]
            self._write()

    def environ(self, instance: str) -> Mapping[str, str]:
        """The environment in which the instance's references are resolved."""
        return {**os.environ, **self._values.get(instance, {})}

    def _write(self) -> None:
        if self._memory is not None:
            self._memory.write(msgspec.json.encode(self._values))
