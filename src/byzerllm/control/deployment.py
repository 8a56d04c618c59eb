"""The seam between the controller and the two kinds of instance: SaaS (slot records) and private (engine processes)."""

from __future__ import annotations

from typing import Any, Protocol

from byzerllm.control.state import State
from byzerllm.routing.instance import Instance
from byzerllm.spec import DeploymentSpec


class Notify(Protocol):
    """Told of progress in words fit for a person; what is ``lasting`` is to stay in sight."""

    def __call__(self, message: str, *, lasting: bool = False) -> None: ...


class Deployment(Protocol):
    """One instance with all that it runs. Methods that wait may be cancelled; ``undo`` then says what follows."""

    spec: DeploymentSpec
    generation: int
    created_at: float
    instance: Instance

    async def start(self, notify: Notify) -> None:
        """Bring up what the spec wants; returns when all workers are ready.

        Raises:
            ByzerError: it cannot be; what was started is still there, for ``stop``.
        """
        ...

    async def change(self, spec: DeploymentSpec, generation: int, notify: Notify) -> None:
        """Go over to another spec without refusing a request meanwhile; returns when the old workers are gone.

        Raises:
            ByzerError: the new spec does not work; the instance runs on with the old one.
        """
        ...

    async def drain(self, notify: Notify) -> None:
        """Take no new request and wait for the running and waiting ones."""
        ...

    async def stop(self) -> None:
        """End everything now. Running requests fail."""
        ...

    def state(self) -> tuple[State, str]:
        """The state and, where not all is well, the reason."""
        ...

    def worker_details(self) -> list[dict[str, Any]]:
        """What is known of each worker beyond its slots (process, restarts, last error)."""
        ...


def unheard(message: str, *, lasting: bool = False) -> None:
    """The ``Notify`` where nobody waits."""


def plural(count: int, noun: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
