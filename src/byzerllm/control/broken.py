"""An instance that was saved but cannot be built any more (its engine or a parameter is gone): shown, not lost."""

from __future__ import annotations

import asyncio
from typing import Any

from byzerllm.control.deployment import Notify
from byzerllm.control.state import State
from byzerllm.errors import ByzerError
from byzerllm.routing.instance import Instance
from byzerllm.spec import DeploymentSpec
from byzerllm.wire.base import Task


class BrokenDeployment:
    """Implements ``Deployment``: it only knows why it cannot run, and can be replaced or removed."""

    def __init__(self, spec: DeploymentSpec, generation: int, created_at: float, error: ByzerError) -> None:
        self.spec = spec
        self.generation = generation
        self.created_at = created_at
        self._error = error
        self.instance = Instance(
            spec.name,
            Task.CHAT,
            load_balance=spec.load_balance,
            max_queue=spec.max_queue,
            queue_timeout=spec.queue_timeout,
            loop=asyncio.get_running_loop(),
            created_at=created_at,
        )
        self.instance.set_unavailable(str(error))

    async def start(self, notify: Notify) -> None:
        raise self._error

    async def change(self, spec: DeploymentSpec, generation: int, notify: Notify) -> None:
        raise self._error

    async def drain(self, notify: Notify) -> None:
        return

    async def stop(self) -> None:
        return

    def state(self) -> tuple[State, str]:
        return State.FAILED, str(self._error)

    def worker_details(self) -> list[dict[str, Any]]:
        return []
