"""A SaaS instance: its workers are slot records that share one endpoint, so all it does is instant."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from byzerllm.control.deployment import Notify
from byzerllm.control.drain import wait_until_drained
from byzerllm.control.state import State
from byzerllm.control.upstreams import saas_upstreams
from byzerllm.errors import ByzerError
from byzerllm.providers.parse import SaasOptions, parse
from byzerllm.routing.instance import Instance
from byzerllm.routing.worker import Upstream, Worker
from byzerllm.spec import DeploymentSpec
from byzerllm.wire.base import Task

Resolve = Callable[[SaasOptions], Awaitable[str]]
"""The base URL of the options' vendor; starts the built-in mock where it is that."""

Reserve = Callable[[DeploymentSpec, int], None]
"""Holds the share of the runtime of so many workers."""


class SaasDeployment:
    """Implements ``Deployment``. A reference that cannot be resolved leaves it without workers, and says why."""

    def __init__(
        self,
        spec: DeploymentSpec,
        generation: int,
        created_at: float,
        *,
        base_url: Resolve,
        environ: Callable[[], Mapping[str, str]],
        reserve: Reserve,
    ) -> None:
        self.spec = spec
        self.generation = generation
        self.created_at = created_at
        self._base_url = base_url
        self._environ = environ
        self._reserve = reserve
        self._error: ByzerError | None = None
        self._current: list[Upstream] = []  # one for each key
        self.instance = Instance(
            spec.name,
            Task.CHAT,
            load_balance=spec.load_balance,
            max_queue=spec.max_queue,
            queue_timeout=spec.queue_timeout,
            loop=asyncio.get_running_loop(),
            created_at=created_at,
        )

    async def start(self, notify: Notify) -> None:
        try:
            options, upstreams = await self._upstreams(self.spec)
        except ByzerError as error:
            self._error = error
            self.instance.set_unavailable(str(error))
            raise
        self._error = None
        self.instance.task = options.task
        self.instance.set_unavailable(None)
        self._grow(upstreams, 0)
        self._reserve(self.spec, self.spec.num_workers)

    async def change(self, spec: DeploymentSpec, generation: int, notify: Notify) -> None:
        options, upstreams = await self._upstreams(spec)
        old = list(self.instance.workers)
        if old and _same_but_workers(self.spec, spec) and (spec != self.spec or upstreams == self._current):
            old, upstreams = [], self._current
        self.spec, self.generation, self._error = spec, generation, None
        self.instance.set_unavailable(None)
        self.instance.task = options.task
        self.instance.max_queue, self.instance.queue_timeout = spec.max_queue, spec.queue_timeout
        if self.instance.load_balance != spec.load_balance:
            self.instance.rebalance(spec.load_balance)
        kept = len(self.instance.workers) - len(old)
        leaving = old or self.instance.workers[spec.num_workers :]
        self._grow(upstreams, kept)
        for worker in leaving:
            self.instance.retire(worker, lambda: None)
        self._reserve(spec, spec.num_workers)

    async def drain(self, notify: Notify) -> None:
        self.instance.draining = True
        await wait_until_drained(self.instance, notify)

    async def stop(self) -> None:
        self.instance.cut("it was removed")
        for worker in list(self.instance.workers):
            self.instance.retire(worker, lambda: None)
        self._reserve(self.spec, 0)

    def state(self) -> tuple[State, str]:
        if self.instance.draining:
            return State.DRAINING, ""
        if self._error is not None:
            return State.FAILED, str(self._error)
        return State.READY, ""

    def worker_details(self) -> list[dict[str, Any]]:
        return []

    async def _upstreams(self, spec: DeploymentSpec) -> tuple[SaasOptions, list[Upstream]]:
        options = parse(spec, self._environ())
        return options, saas_upstreams(options, await self._base_url(options))

    def _grow(self, upstreams: list[Upstream], first_index: int) -> None:
        """Worker i has key i modulo their number."""
        self._current = upstreams
        now = asyncio.get_running_loop().time()
        for index in range(first_index, self.spec.num_workers):
            upstream = upstreams[index % len(upstreams)]
            self.instance.add(Worker(index, str(index), self.spec.worker_concurrency or 1, upstream, now))


def _same_but_workers(old: DeploymentSpec, new: DeploymentSpec) -> bool:
    fields = ("infer_params", "worker_concurrency", "pretrained_model_type")
    return all(getattr(old, f) == getattr(new, f) for f in fields)
