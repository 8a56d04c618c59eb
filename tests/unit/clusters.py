"""A cluster in memory, in the place of ``byzerllm.runtime.ray.Cluster``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from byzerllm.errors import Conflict
from byzerllm.runtime.placement import ActorGone, Node

Method = Callable[..., Awaitable[Any]]


class FakeActor:
    """An actor with these methods. It dies when it is told to, as Ray's do: every pending call fails."""

    def __init__(self, cluster: FakeCluster, name: str, methods: Mapping[str, Method]) -> None:
        self._cluster = cluster
        self.name = name
        self.methods = dict(methods)
        self.calls: list[tuple[Any, ...]] = []
        self.killed = False
        self._gone: asyncio.Future[None] | None = None

    def has(self, method: str) -> bool:
        return method in self.methods

    def kill(self) -> None:
        self.killed = True
        self._cluster.actors.pop(self.name, None)

    def die(self, gone: ActorGone) -> None:
        """Its process or node is gone."""
        self._cluster.actors.pop(self.name, None)
        self._end().set_exception(gone)

    async def call(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        self.calls.append((method, *args))
        answer = asyncio.ensure_future(self.methods[method](*args))
        end = self._end()
        await asyncio.wait((answer, end), return_when=asyncio.FIRST_COMPLETED)
        if end.done():
            answer.cancel()
            end.result()
        return answer.result()

    def _end(self) -> asyncio.Future[None]:
        if self._gone is None:
            self._gone = asyncio.get_event_loop().create_future()
        return self._gone


class FakeCluster:
    """``methods`` are those of every actor that is created; ``actors`` are by name, whatever the namespace; ``answers``
    is what functions return, by node."""

    address = "10.0.0.1:6379"

    def __init__(self, methods: Mapping[str, Method] | None = None, nodes: Sequence[Node] = ()) -> None:
        self.methods = methods or {}
        self.all_nodes = list(nodes)
        self.actors: dict[str, FakeActor] = {}
        self.created: list[dict[str, Any]] = []
        self.reserved: dict[str, Sequence[float]] = {}
        self.has_cpus = True
        self.in_queue = 1
        self.ran: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {}

    def create(self, path: str, name: str, *args: Any, **options: Any) -> FakeActor:
        if name in self.actors:
            raise Conflict(f"The cluster has an actor {name!r}.")
        self.created.append({"path": path, "args": args, **options})
        return self.add(name, self.methods)

    def add(self, name: str, methods: Mapping[str, Method]) -> FakeActor:
        self.actors[name] = actor = FakeActor(self, name, methods)
        return actor

    def run_on(self, nodes: Sequence[str], path: str, *args: Any, timeout: float) -> dict[str, Any]:
        self.ran.append((path, *args))
        return {node: self.answers[node] for node in nodes if node in self.answers}

    def find(self, name: str, namespace: str = "") -> FakeActor | None:
        return self.actors.get(name)

    def names(self, namespace: str = "") -> list[str]:
        return list(self.actors)

    def nodes(self) -> list[Node]:
        return self.all_nodes

    def queued(self, amounts: Mapping[str, float]) -> int:
        return self.in_queue

    def reserve(self, instance: str, cpus: Sequence[float]) -> bool:
        self.reserved[instance] = cpus
        return self.has_cpus

    def release(self, instance: str) -> None:
        self.reserved.pop(instance, None)

    def reservations(self) -> list[str]:
        return list(self.reserved)
