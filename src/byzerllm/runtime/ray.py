"""A Ray cluster as this project sees it: actors by name, nodes, reserved CPUs. Only this module and ``ray_connection``
import Ray.

Ray places, supervises and names; no request and no token of an answer goes through it. All methods of ``Cluster`` block
for some milliseconds: in an event loop use a thread.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import ray
import ray.actor
import ray.exceptions
import ray.util
import ray.util.client
from ray._private import state as cluster_state  # what each node has free has no public name
from ray._private.worker import global_worker
from ray.core.generated import autoscaler_pb2
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from byzerllm.errors import ByzerError, Conflict, DeploymentFailed, InternalError, ServerUnavailable
from byzerllm.runtime.placement import ActorGone, Node
from byzerllm.runtime.ray_connection import join

NAMESPACE = "byzerllm"
SERVER = "byzerllm"  # the name of the server's actor

GRANT_SECONDS = 0.2  # Ray grants what is free within some milliseconds
_RETRY_SECONDS = 0.1
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_NAMED_ERROR = re.compile(r"^byzerllm[.\w]*: ")
_OUT_OF_MEMORY = re.compile(r"Memory on the node .*? was ([\d.]+ ?GB)(?: used)? / ([\d.]+ ?GB)")
_HEAD = "node:__internal_head__"
_GROUP = "byzerllm:"


class Here(NamedTuple):
    """Where an actor runs: the node's private address, its id, and the GPUs that Ray has given to the actor."""

    host: str
    node: str
    gpus: tuple[str, ...]


def here() -> Here:
    """The place of the actor that calls it."""
    context = ray.get_runtime_context()
    gpus = tuple(str(number) for number in context.get_accelerator_ids().get("GPU", ()))
    return Here(ray.util.get_node_ip_address(), context.get_node_id(), gpus)


def is_restarted() -> bool:
    """Whether Ray has started the actor that calls it again."""
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def own_handle() -> Any:
    """The handle of the actor that calls it, as Ray hands it to others."""
    return ray.get_runtime_context().current_actor


class Actor:
    """A handle of an actor. A call waits while Ray restarts it."""

    def __init__(self, handle: ray.actor.ActorHandle) -> None:
        self._handle = handle

    async def call(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        """The answer of a method; ``timeout`` in seconds.

        Raises:
            ActorGone: it has died for good.
            asyncio.TimeoutError: it did not answer in time.
            ByzerError: what the method raised.
        """
        # Not by wait_for, which before Python 3.12 forgets that it was cancelled when the answer comes at that moment.
        answering = asyncio.ensure_future(self._answer(method, args))
        try:
            await asyncio.wait((answering,), timeout=timeout)
            if not answering.done():
                raise asyncio.TimeoutError(f"no answer to {method} within {timeout:g} s")
            return answering.result()
        finally:
            answering.cancel()

    async def _answer(self, method: str, args: Sequence[Any]) -> Any:
        while True:
            try:
                return await getattr(self._handle, method).remote(*args)
            except ray.exceptions.ActorUnavailableError:
                await asyncio.sleep(_RETRY_SECONDS)
            except ray.exceptions.RayError as error:
                raise _translated(error) from None

    def ask(self, method: str, *args: Any, timeout: float) -> Any:
        """The same for a program without an event loop.

        Raises:
            TimeoutError: it did not answer in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                return ray.get(
                    getattr(self._handle, method).remote(*args), timeout=max(0.0, deadline - time.monotonic())
                )
            except ray.exceptions.ActorUnavailableError:
                time.sleep(_RETRY_SECONDS)
            except ray.exceptions.GetTimeoutError:
                raise TimeoutError(f"no answer to {method} within {timeout:g} s") from None
            except ray.exceptions.RayError as error:
                raise _translated(error) from None

    def has(self, method: str) -> bool:
        """Whether its class has a method of that name."""
        return hasattr(self._handle, method)

    def kill(self) -> None:
        """End it now and for good. Repeating it does nothing."""
        with suppress(ray.exceptions.RayActorError):
            ray.kill(self._handle)


def _translated(error: ray.exceptions.RayError) -> BaseException:
    """Ray's error as ours: what a method raised is taken out of its wrapping."""
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        return cause if isinstance(cause, ByzerError) else InternalError(f"An actor failed: {cause!r}.")
    text = _COLOURS.sub("", str(error)).strip()
    if "No module named 'byzerllm" in text:
        return ActorGone("byzerllm is not installed on that node: run pip install 'byzerllm[ray]' there")
    if isinstance(error, ray.exceptions.ActorDiedError) and error.actor_init_failed:
        return ActorGone(_NAMED_ERROR.sub("", text.splitlines()[-1]))
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        found = _OUT_OF_MEMORY.search(text)
        used = f" ({found[1]} of {found[2]} were in use)" if found else ""
        return ActorGone(f"its node was out of memory{used}, and Ray ended it")
    if "killed by `ray.kill`" in text:
        return ActorGone("it was killed by ray.kill", killed=True)
    if isinstance(error, ray.exceptions.ActorUnschedulableError) or "node has died" in text:
        return ActorGone("its node was lost")
    return ActorGone("its actor's process ended")


@contextmanager
def _translating() -> Iterator[None]:
    """Ray's errors as ours."""
    try:
        yield
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:
        raise ServerUnavailable(f"The Ray cluster did not do it: {_COLOURS.sub('', str(error)).strip()}") from error


class Cluster:
    """The cluster that this process is connected to. What Ray refuses or fails to do is ``ServerUnavailable``."""

    def __init__(self, address: str) -> None:
        self.address = address

    @classmethod
    def connect(cls, address: str) -> Cluster:
        """Connect this program to a cluster until ``disconnect``.

        Raises:
            ServerUnavailable: nothing answers there, it is of another version of Ray or Python, or it wants a token.
        """
        return cls(join(address, NAMESPACE))

    def disconnect(self) -> None:
        """End the program's connection; what it created stays."""
        ray.shutdown()

    @classmethod
    def current(cls) -> Cluster:
        """The cluster of the actor that calls it."""
        return cls(ray.get_runtime_context().gcs_address)

    @_translating()
    def create(
        self,
        path: str,
        name: str,
        *args: Any,
        namespace: str = NAMESPACE,
        cpus: float = 0.0,
        gpus: float = 0.0,
        resources: Mapping[str, float] | None = None,
        node: str = "",
        preferred: str = "",
        restarts: bool = False,
        calls: int | None = None,
    ) -> Actor:
        """Have a class (``module:Class``) run as a detached actor; returns before it does.

        ``node`` pins it to one node, ``preferred`` is the one to take if it has what the actor needs free;
        ``restarts`` has Ray start it again whenever its process dies; ``calls`` is how many of its methods may wait at
        a time, where Ray's own number is too small.

        Raises:
            Conflict: there is an actor of that name.
        """
        module, _, kind = path.partition(":")
        options: dict[str, Any] = {
            "name": name,
            "namespace": namespace,
            "lifetime": "detached",
            "num_cpus": cpus,
            "num_gpus": gpus,
            "resources": {key: value for key, value in (resources or {}).items() if value > 0},
            "max_restarts": -1 if restarts else 0,
        }
        if calls is not None:
            options["max_concurrency"] = calls
        if node:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        elif preferred:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                preferred, soft=True, _spill_on_unavailable=True
            )
        try:
            return Actor(ray.remote(getattr(importlib.import_module(module), kind)).options(**options).remote(*args))
        except ValueError as error:
            if self.find(name, namespace) is None:
                raise DeploymentFailed(f"Ray does not take the actor {name}: {error}") from error
            raise Conflict(f"The cluster has an actor {name!r} in the namespace {namespace!r}.") from error

    @_translating()
    def run_on(self, nodes: Sequence[str], path: str, *args: Any, timeout: float) -> dict[str, Any]:
        """What a function (``module:function``) returns on each of these nodes; without those where it fails or takes
        longer than ``timeout`` seconds."""
        module, _, function = path.partition(":")
        task = ray.remote(num_cpus=0, max_retries=0)(getattr(importlib.import_module(module), function))
        calls = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            calls[task.options(scheduling_strategy=there).remote(*args)] = node
        done, late = ray.wait(list(calls), num_returns=len(calls), timeout=timeout)
        for call in late:
            ray.cancel(call, force=True)
        answers = {}
        for call in done:
            with suppress(ray.exceptions.RayError):  # the node is lost, or we are not installed there
                answers[calls[call]] = ray.get(call)
        return answers

    @_translating()
    def find(self, name: str, namespace: str = NAMESPACE) -> Actor | None:
        """The actor of that name, None when there is none or it has died."""
        try:
            return Actor(ray.get_actor(name, namespace))
        except ValueError:
            return None

    @_translating()
    def names(self, namespace: str = NAMESPACE) -> list[str]:
        """The names of all actors there."""
        return [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == namespace]

    @_translating()
    def nodes(self) -> list[Node]:
        """The nodes that are alive."""
        free = {} if ray.util.client.ray.is_connected() else cluster_state.available_resources_per_node()
        return [
            Node(
                id=node["NodeID"],
                host=node["NodeManagerAddress"],
                head=_HEAD in node["Resources"],
                total=node["Resources"],
                free=free.get(node["NodeID"], {}),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def queued(self, amounts: Mapping[str, float]) -> int:
        """How many actors and tasks that ask for just this Ray has found no place for."""
        gcs = global_worker.gcs_client
        reply = autoscaler_pb2.GetClusterResourceStateReply.FromString(gcs.get_cluster_resource_state())
        requests = reply.cluster_resource_state.pending_resource_requests
        return sum(r.count for r in requests if dict(r.request.resources_bundle) == dict(amounts))

    @_translating()
    def reserve(self, instance: str, cpus: Sequence[float]) -> bool:
        """Take these pieces of CPU out of what the cluster has free, in place of what the instance held before.

        Returns whether all of them are free now; if not, Ray holds them back as soon as they are.
        """
        wanted = [{"CPU": amount} for amount in cpus]
        group = self._group(instance)
        if group is not None and group.bundle_specs != wanted:
            ray.util.remove_placement_group(group)
            group = None
        if group is None:
            group = ray.util.placement_group(wanted, strategy="PACK", name=_group_name(instance), lifetime="detached")
        return bool(group.wait(timeout_seconds=GRANT_SECONDS))

    @_translating()
    def release(self, instance: str) -> None:
        """The instance's CPUs are free again."""
        group = self._group(instance)
        if group is not None:
            ray.util.remove_placement_group(group)

    @_translating()
    def reservations(self) -> list[str]:
        """The instances that hold CPUs."""
        groups = ray.util.placement_group_table().values()
        names = [group["name"] for group in groups if group["state"] != "REMOVED"]
        return [name.removeprefix(_GROUP) for name in names if name.startswith(_GROUP)]

    def _group(self, instance: str) -> Any:
        try:
            return ray.util.get_placement_group(_group_name(instance))
        except ValueError:
            return None


class ClusterMemory:
    """A few KiB in the memory of the cluster's head: what outlives the server's process and not the cluster. ``name``
    tells one server's from another's."""

    def __init__(self, name: str) -> None:
        self._key = f"secrets:{name}".encode()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cluster-memory")  # writes keep their order

    def read(self) -> bytes:
        return internal_kv._internal_kv_get(self._key, namespace=NAMESPACE.encode()) or b""

    def clear(self) -> None:
        """Nothing is left of what was written; nothing may be written after it."""
        self._thread.shutdown()
        internal_kv._internal_kv_del(self._key, namespace=NAMESPACE.encode())

    def write(self, data: bytes) -> None:
        self._thread.submit(internal_kv._internal_kv_put, self._key, data, overwrite=True, namespace=NAMESPACE.encode())


def _group_name(instance: str) -> str:
    return _GROUP + instance
