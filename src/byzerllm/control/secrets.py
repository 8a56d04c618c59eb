"""Where ``env:NAME`` values come from: the command that deployed the instance, then the server's own environment.

The values live in memory only. The supervisor holds an anonymous file (no name, no disk) through which a server that
crashed hands them to the next one; without it they are gone with the process, and the instance says what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec


class Secrets:
    """Values of environment variables by instance. ``fd`` is the anonymous file, or None."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._values: dict[str, dict[str, str]] = {}
        if fd is not None:
            size = os.fstat(fd).st_size
            if size:
                self._values = msgspec.json.decode(os.pread(fd, size, 0), type=dict[str, dict[str, str]])

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
        if self._fd is None:
            return
        data = msgspec.json.encode(self._values)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)
