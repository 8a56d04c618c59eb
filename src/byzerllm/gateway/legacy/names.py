"""The names of instances as older clients look them up: an actor for each in Ray's namespace ``default``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from byzerllm.errors import Conflict
from byzerllm.runtime.on_ray import made
from byzerllm.runtime.placement import ActorGone

if TYPE_CHECKING:
    from byzerllm.runtime.ray import Actor, Cluster

NAMESPACE = "default"
MAX_CALLS = 10_000  # that wait at a time; how many are answered is the server's affair
ACTOR = "byzerllm.gateway.legacy.actor:LegacyInstance"

_OWN_METHOD = "until_killed"  # what no actor of somebody else has

log = logging.getLogger(__name__)


class LegacyNames:
    """Implements ``Names``. The actors outlive a crash of the server; ``home`` is where they find the next one."""

    def __init__(self, cluster: Cluster, home: Path, node: str) -> None:
        self._cluster = cluster
        self._home = home
        self._node = node
        self._removed: Callable[[str], None] = lambda name: None
        self._watches: dict[str, asyncio.Task[None]] = {}

    def watch(self, removed: Callable[[str], None]) -> None:
        """The older ``undeploy`` kills the actor: ``removed`` is then told."""
        self._removed = removed

    async def claim(self, name: str) -> None:
        """Have an actor of that name, or go on with the one that there is.

        Raises:
            Conflict: somebody else's actor has the name.
        """
        if name in self._watches:
            return
        actor = await made(lambda: self._actor(name))
        self._watches[name] = asyncio.ensure_future(self._until_gone(name, actor))

    async def drop(self, name: str) -> None:
        """End the actor; its clients get an error that says so."""
        watch = self._watches.pop(name, None)
        if watch is not None:
            watch.cancel()
            await asyncio.to_thread(self._end, name)

    async def sweep(self, names: Collection[str]) -> None:
        """End the actors of instances that are no more."""
        for name in await asyncio.to_thread(self._cluster.names, NAMESPACE):
            if name not in names:
                await asyncio.to_thread(self._end, name)

    def _actor(self, name: str) -> Actor:
        try:
            return self._cluster.create(
                *(ACTOR, name, name, str(self._home)),
                namespace=NAMESPACE,
                node=self._node,
                restarts=True,
                calls=MAX_CALLS,
            )
        except Conflict:
            actor = self._cluster.find(name, NAMESPACE)
            if actor is not None and actor.has(_OWN_METHOD):
                return actor
            raise Conflict(
                f"The name {name} is taken: the cluster has an actor {name!r} in the namespace {NAMESPACE!r} that is"
                " not of byzerllm, and older clients would find that one.",
                hint="Use another --model, or end that actor (`ray list actors` shows it).",
                param="model",
            ) from None

    def _end(self, name: str) -> None:
        actor = self._cluster.find(name, NAMESPACE)
        if actor is not None and actor.has(_OWN_METHOD):
            actor.kill()

    async def _until_gone(self, name: str, actor: Actor) -> None:
        """Wait for the actor's end. Ray starts one that crashed again, so that only a kill is an end."""
        try:
            await actor.call(_OWN_METHOD)
        except ActorGone as gone:
            self._watches.pop(name, None)
            if gone.killed:
                self._removed(name)
            else:
                log.warning("older clients cannot reach %s: %s", name, gone)
