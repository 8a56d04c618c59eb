"""Waiting for an instance's requests to end."""

from __future__ import annotations

import asyncio

from byzerllm.control.deployment import Notify, plural
from byzerllm.routing.instance import Instance

_EVERY = 0.05  # seconds; a request's end is not announced, so that the hot path pays nothing for it
_SAY_AFTER = 1.0
_SAY_EVERY = 5.0


async def wait_until_drained(instance: Instance, notify: Notify) -> None:
    """Return when nothing runs or waits on the instance; says now and then for what it waits."""
    loop = asyncio.get_running_loop()
    say_at = loop.time() + _SAY_AFTER
    while instance.active or instance.queued:
        if loop.time() >= say_at:
            say_at = loop.time() + _SAY_EVERY
            waiting = f", {instance.queued} more wait" if instance.queued else ""
            notify(f"waiting for {plural(instance.active, 'running request')}{waiting}")
        await asyncio.sleep(_EVERY)
