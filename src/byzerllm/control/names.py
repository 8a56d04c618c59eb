"""The seam for those who know instances by other means than this server: older clients on a Ray cluster do."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol


class Names(Protocol):
    """Makes the names of instances known elsewhere. Every call is idempotent."""

    def watch(self, removed: Callable[[str], None]) -> None:
        """Have ``removed`` called with the name of an instance that was taken away there."""
        ...

    async def claim(self, name: str) -> None:
        """Make an instance known.

        Raises:
            Conflict: somebody else has that name there.
        """
        ...

    async def drop(self, name: str) -> None:
        """The instance is no longer known there."""
        ...

    async def sweep(self, names: Collection[str]) -> None:
        """No other instances are known there: a server died before it had dropped them."""
        ...


class NoNames:
    """Nobody else needs to know: clients use HTTP."""

    def watch(self, removed: Callable[[str], None]) -> None:
        return

    async def claim(self, name: str) -> None:
        return

    async def drop(self, name: str) -> None:
        return

    async def sweep(self, names: Collection[str]) -> None:
        return
