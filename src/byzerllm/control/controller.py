"""Deploy, change, remove and restore instances: desired state in, actual state out.

Guarantees: what ``deploy`` was told is on the disk before it acts; a deployment that fails, or whose caller goes away
while it waits, leaves nothing behind; a change that fails leaves the instance as it was; every call may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec

from byzerllm.control import prepare
from byzerllm.control.broken import BrokenDeployment
from byzerllm.control.deployment import Deployment, Notify, plural, unheard
from byzerllm.control.memory import MemoryCheck
from byzerllm.control.names import Names
from byzerllm.control.private import PrivateDeployment, Surroundings
from byzerllm.control.saas import SaasDeployment
from byzerllm.control.secrets import Secrets
from byzerllm.control.settled import settled
from byzerllm.control.state import State
from byzerllm.control.status import status
from byzerllm.control.store import SavedDeployment, SavedEngine, Store
from byzerllm.engines.environments import Environments
from byzerllm.errors import ByzerError, InternalError
from byzerllm.providers.parse import SaasOptions, parse
from byzerllm.relay.pool import Pool
from byzerllm.routing.table import Table, no_such_model
from byzerllm.runtime.base import Runtime
from byzerllm.spec import DeploymentSpec, check_spec, differences

log = logging.getLogger(__name__)


class Controller:
    """The instances of one server. All methods belong to the event loop's thread."""

    def __init__(
        self,
        *,
        table: Table,
        pool: Pool,
        store: Store,
        runtime: Runtime,
        engines: Environments,
        names: Names,
        secrets: Secrets,
        mock_url: Callable[[], Any],
        probe_interval: float,
    ) -> None:
        self._table = table
        self._pool = pool
        self._store = store
        self._runtime = runtime
        self._names = names
        names.watch(self._removed_elsewhere)
        self._secrets = secrets
        self._mock_url = mock_url
        self._deployments: dict[str, Deployment] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._operations: dict[str, set[asyncio.Task[Any]]] = {}
        self._generations: dict[str, int] = {}
        self._removals: set[asyncio.Future[None]] = set()
        self._restoring: asyncio.Future[None] | None = None
        self._around = Surroundings(
            runtime=runtime,
            pool=pool,
            store=store,
            plan=lambda spec: prepare.engine_plan(spec, self._secrets.environ(spec.name), engines.python),
            probe_interval=probe_interval,
        )
        self._outside = prepare.Outside(pool, engines, MemoryCheck(runtime, self._is_loading))

    # -- reading -------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return sorted(self._deployments)

    def get(self, name: str) -> Deployment:
        """The instance of that name.

        Raises:
            ModelNotFound: there is none; the message lists the names there are.
        """
        try:
            return self._deployments[name]
        except KeyError:
            raise no_such_model(name, self._deployments) from None

    def status(self, name: str) -> dict[str, Any]:
        """What ``byzerllm list`` shows, secrets masked."""
        return status(self.get(name))

    # -- changing ------------------------------------------------------------------------------------------------

    async def deploy(
        self,
        spec: DeploymentSpec,
        *,
        replace: bool,
        verify: bool,
        wait: bool,
        environment: Mapping[str, str],
        accepted: Callable[[], None],
        notify: Notify,
        note: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> str:
        """Bring the instance to what ``spec`` says; returns ready, unchanged or accepted.

        ``accepted`` is called once nothing can be refused any more. Cancelling it undoes what it started.

        Raises:
            ByzerError: refused (before ``accepted``, nothing changed) or failed (nothing left behind).
        """
        environ = {**self._secrets.environ(spec.name), **environment}
        known = self._deployments.get(spec.name)
        spec, chosen = await prepare.with_backend(spec, known.spec if known else None)
        await asyncio.to_thread(prepare.check, spec, environ)
        if chosen:
            note(chosen)
        async with self._operation(spec.name, notify):
            current = self._deployments.get(spec.name)
            rows = differences(current.spec, spec) if current else []
            if current is not None and not rows and not (replace and spec.is_saas):  # which looks keys up anew
                return await self._again(current, environment, accepted, notify, warn)
            if current is not None and not replace:
                raise prepare.conflict(current.spec, spec, rows)
            others = [d.spec for d in self._deployments.values() if d is not current]
            await self._runtime.admit(spec, others, patient=not wait)
            base_url = await self._base_url(parse(spec, environ)) if spec.is_saas else ""
            before = current.spec if current and not isinstance(current, BrokenDeployment) else None
            for warning in await prepare.check_outside(spec, before, self._outside, base_url, environ, verify=verify):
                warn(warning)
            await self._names.claim(spec.name)
            secrets_before = self._secrets.put(spec.name, environment)
            accepted()
            if current is None:
                return await self._create(spec, wait, notify)
            try:
                await self._change(current, spec, notify)
            except BaseException:
                self._secrets.reset(spec.name, secrets_before)
                raise
            return "ready"

    async def scale(self, name: str, num_workers: int, accepted: Callable[[], None], notify: Notify) -> str:
        """Another number of workers; running ones are not disturbed, surplus ones finish their requests first.

        Raises:
            ByzerError: refused (before ``accepted``, nothing changed) or failed (the instance is as it was).
        """
        async with self._operation(name, notify):
            current = self.get(name)
            spec = msgspec.structs.replace(current.spec, num_workers=num_workers)
            check_spec(spec)
            if spec == current.spec:
                return "unchanged"
            others = [d.spec for d in self._deployments.values() if d is not current]
            await self._runtime.admit(spec, others, patient=False)
            await prepare.check_scale(spec, current.spec, self._outside, self._secrets.environ(name))
            accepted()
            await self._change(current, spec, notify)
            return "ready"

    async def undeploy(self, name: str, *, force: bool, notify: Notify) -> None:
        """Refuse new requests, let the others end (not with ``force``), free everything and forget the instance.

        It ends any other operation on the instance first. Once begun it goes on, even when its caller goes away.
        """
        self.get(name)
        await asyncio.shield(self._begin_removal(name, force, notify))

    async def restore(self) -> None:
        """At the server's start: bring the desired state back, re-adopting the engines that still run."""
        engines = await self._store.load_engines()
        desired = await self._store.load()
        names = [saved.spec.name for saved in desired]
        await self._runtime.sweep(names, [engine.process.worker_id for engine in engines])
        await self._names.sweep(names)
        for deployment in await asyncio.gather(*(self._rebuild(saved) for saved in desired)):
            self._register(deployment)
        adopted = await asyncio.gather(*(self._adopt(engine) for engine in engines))
        for deployment in self._deployments.values():
            if not isinstance(deployment, PrivateDeployment):
                with contextlib.suppress(ByzerError):  # it stays, and its state says why it has no workers
                    await deployment.start(unheard)
        orphans = [engine for engine, ours in zip(engines, adopted, strict=True) if not ours]
        self._restoring = asyncio.ensure_future(self._bring_back(orphans, list(self._deployments.values())))

    async def _bring_back(self, orphans: list[SavedEngine], deployments: list[Deployment]) -> None:
        """What of ``restore`` may take long where a node is lost, and no request waits for."""
        for failure in await asyncio.gather(*(self._end(orphan) for orphan in orphans), return_exceptions=True):
            if failure is not None:
                log.error("an engine of an earlier server could not be ended: %s", failure)
        for deployment in deployments:
            if self._deployments.get(deployment.spec.name) is deployment:
                if isinstance(deployment, PrivateDeployment):
                    deployment.run()  # not before: a new worker may have an orphan's name
                await self._claim(deployment.spec.name)

    async def _adopt(self, engine: SavedEngine) -> bool:
        deployment = self._deployments.get(engine.deployment)
        return isinstance(deployment, PrivateDeployment) and await deployment.adopt(engine)

    async def _end(self, orphan: SavedEngine) -> None:
        await self._runtime.stop(orphan.process, grace=0)
        await self._store.delete_engine(orphan.process.worker_id)

    async def _claim(self, name: str) -> None:
        try:
            await self._names.claim(name)
        except ByzerError as error:
            log.warning("%s is not known to older clients: %s", name, error)

    def settled(self, notify: Callable[[str, str], None]) -> AsyncIterator[tuple[str, str | None]]:
        """Each instance once it is ready, or with the reason once it failed; tries the failed ones again first."""
        return settled(self._deployments, notify)

    async def close(self) -> None:
        """At the server's orderly stop: end all engines; the desired state stays on the disk."""
        if self._restoring is not None:
            self._restoring.cancel()
        for tasks in self._operations.values():
            for task in list(tasks):
                task.cancel()
        await asyncio.gather(*(d.stop() for d in self._deployments.values()))
        await asyncio.gather(*(self._names.drop(name) for name in self._deployments))

    # -- helpers -------------------------------------------------------------------------------------------------

    def _is_loading(self, name: str) -> bool:
        """Whether its workers are still to take memory."""
        known = self._deployments.get(name)
        state = known.state()[0] if known else State.READY
        return bool(self._operations.get(name)) or state in (State.PENDING, State.STARTING)

    async def _again(
        self,
        current: Deployment,
        environment: Mapping[str, str],
        accepted: Callable[[], None],
        notify: Notify,
        warn: Callable[[str], None],
    ) -> str:
        """The same spec once more: nothing to do, or another try where it does not run."""
        if current.state()[0] is State.READY:
            known = self._secrets.environ(current.spec.name)
            for name in (n for n, value in environment.items() if known.get(n) != value):
                warn(f"{name} has another value now, but the instance goes on with the old one until it is undeployed.")
            return "unchanged"
        self._secrets.put(current.spec.name, environment)
        accepted()
        if isinstance(current, BrokenDeployment):
            current = await self._build(current.spec, current.generation, current.created_at)
            self._register(current)
        await current.start(notify)
        return "ready"

    async def _create(self, spec: DeploymentSpec, wait: bool, notify: Notify) -> str:
        deployment = None
        try:
            deployment = await self._build(spec, 1, time.time())
            await self._save(deployment)
            self._register(deployment)
            if not wait and isinstance(deployment, PrivateDeployment):
                deployment.run()
                return "accepted"
            notify(f"starting {plural(spec.num_workers, 'worker')}")
            await deployment.start(notify)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._discard(spec.name, deployment)))
            raise
        return "ready"

    async def _change(self, current: Deployment, spec: DeploymentSpec, notify: Notify) -> None:
        generation = self._next_generation(current) if prepare.restarts(current.spec, spec) else current.generation
        if spec.is_saas == current.spec.is_saas and not isinstance(current, BrokenDeployment):
            await current.change(spec, generation, notify)
            await self._save(current)
            return
        successor = await self._build(spec, generation, time.time())
        try:
            await successor.start(notify)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(successor.stop()))
            raise
        self._register(successor)
        await self._save(successor)
        await current.drain(notify)
        await current.stop()

    def _removed_elsewhere(self, name: str) -> None:
        """An older client has undeployed the instance: there, killing its name is how that is done."""
        if name in self._deployments:
            log.info("%s was undeployed by an older client", name)
            self._begin_removal(name, True, unheard)

    def _begin_removal(self, name: str, force: bool, notify: Notify) -> asyncio.Future[None]:
        for task in list(self._operations.get(name, ())):
            task.cancel()
        removal = asyncio.ensure_future(self._undeploy(name, force, notify))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        return removal

    def _next_generation(self, current: Deployment) -> int:
        """Never one that was used before, so that nothing of a change that failed is taken for the next one's."""
        latest = max(current.generation, self._generations.get(current.spec.name, 0)) + 1
        self._generations[current.spec.name] = latest
        return latest

    async def _undeploy(self, name: str, force: bool, notify: Notify) -> None:
        async with self._operation(name, notify):
            deployment = self._deployments.get(name)
            if deployment is None:  # the operation that was ended has undone it
                return
            self._table.remove(name)
            if not force:
                await deployment.drain(notify)
            await self._discard(name, deployment)

    async def _discard(self, name: str, deployment: Deployment | None) -> None:
        self._table.remove(name)
        await self._store.delete(name)
        await self._names.drop(name)
        if deployment is not None:
            await deployment.stop()
        self._deployments.pop(name, None)
        self._generations.pop(name, None)
        self._secrets.reset(name, {})

    def _register(self, deployment: Deployment) -> None:
        self._deployments[deployment.spec.name] = deployment
        self._table.put(deployment.instance)

    async def _save(self, deployment: Deployment) -> None:
        await self._store.save(SavedDeployment(deployment.spec, deployment.generation, deployment.created_at))

    async def _rebuild(self, saved: SavedDeployment) -> Deployment:
        try:
            return await self._build(saved.spec, saved.generation, saved.created_at)
        except ByzerError as error:
            log.error("%s cannot be restored: %s", saved.spec.name, error)
            reason = error
        except Exception as error:  # of any kind: it must not keep the others from coming back
            log.exception("%s cannot be restored", saved.spec.name)
            reason = InternalError(f"It cannot be restored: {error!r}.")
        return BrokenDeployment(saved.spec, saved.generation, saved.created_at, reason)

    async def _build(self, spec: DeploymentSpec, generation: int, created_at: float) -> Deployment:
        if spec.is_saas:
            return SaasDeployment(
                spec,
                generation,
                created_at,
                base_url=self._base_url,
                environ=lambda: self._secrets.environ(spec.name),
                reserve=self._runtime.reserve,
            )
        return await PrivateDeployment.build(spec, generation, created_at, self._around)

    async def _base_url(self, options: SaasOptions) -> str:
        if options.base_url == "builtin:mock":
            return str(await self._mock_url())
        return options.base_url

    @contextlib.asynccontextmanager
    async def _operation(self, name: str, notify: Notify) -> AsyncIterator[None]:
        """One operation at a time on an instance; it can be ended by ``undeploy``."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        if lock.locked():
            notify(f"waiting for another command that works on {name}")
        async with lock:
            task = asyncio.current_task()
            assert task is not None
            self._outside.memory.forget_loaded()  # what is done now does not make it a loading one again
            self._operations.setdefault(name, set()).add(task)
            try:
                yield
            finally:
                self._operations[name].discard(task)
        if name not in self._deployments and not lock.locked():
            self._locks.pop(name, None)
            self._operations.pop(name, None)
