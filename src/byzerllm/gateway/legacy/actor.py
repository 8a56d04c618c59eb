"""The actor that stands under an instance's name for the older clients.

Ray sends an actor's class to whoever looks the actor up. The older clients have a ``byzerllm`` of their own, in which
nothing of ours can be imported; without the class Ray does not know what its methods take, and refuses every call. So
the class goes as code: it is made in a function, where Ray finds no name for it, and all that it needs is imported in
the actor's own process. No annotation may name a class of ours, and no method a global of this module.
"""

from __future__ import annotations

from typing import Any


def _made_here() -> Any:
    class LegacyInstance:
        """``name`` of the server whose ``server.json`` is in the folder ``home``. See ``LegacyService``."""

        def __init__(self, name: str, home: str) -> None:
            from byzerllm.gateway.legacy.service import LegacyService
            from byzerllm.runtime.ray import own_handle

            self._service = LegacyService(name, home)
            self._handle = own_handle()

        async def get(self, worker_id: int = -1) -> list[Any]:
            """A number and a worker: there is this one, whichever is asked for."""
            return [0, self._handle]

        async def give_back(self, worker_id: int) -> None:
            """Nothing was taken."""

        async def stat(self) -> dict[str, Any]:
            return await self._service.stat()

        async def async_apply(self, texts: list[str]) -> dict[str, list[str]]:
            return await self._service.async_apply(texts)

        async def get_item(self, request_id: str) -> Any:
            return await self._service.get_item(request_id)

        async def until_killed(self) -> None:
            await self._service.until_killed()

    return LegacyInstance


LegacyInstance = _made_here()
