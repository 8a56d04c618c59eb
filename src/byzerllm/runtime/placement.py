"""What a cluster has, and why a worker has its place there or must wait for one: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from byzerllm.errors import CapacityExceeded, InvalidInput
from byzerllm.runtime.base import Need
from byzerllm.spec import DeploymentSpec

SMALLEST = 0.0001
_ROUNDING = 1e-6
_FLAGS = {"CPU": "--cpus_per_worker", "GPU": "--gpus_per_worker"}


class ActorGone(Exception):
    """The actor will not answer any more: ``killed`` by somebody's ``ray.kill``, or it or its node has died."""

    def __init__(self, message: str, *, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


@dataclass(frozen=True)
class Node:
    """One machine of the cluster: what it has of each resource in all, and what of it is free now."""

    id: str
    host: str
    head: bool = False
    total: Mapping[str, float] = field(default_factory=dict)
    free: Mapping[str, float] = field(default_factory=dict)


def wanted(need: Need) -> dict[str, float]:
    """The amounts by the cluster's own names; without those that are zero."""
    amounts = {"CPU": need.cpus, "GPU": need.gpus, **need.resources}
    return {name: amount for name, amount in amounts.items() if amount > 0}


def fits(need: Need, nodes: Iterable[Node]) -> bool:
    """Whether some node has all of it free."""
    return any(_has(node.free, wanted(need)) for node in nodes)


def places(need: Need, amounts: Mapping[str, float], most: int) -> int:
    """For how many workers, ``most`` at most, these amounts are enough."""
    return min([most, *(int((amounts.get(n, 0.0) + _ROUNDING) / amount) for n, amount in wanted(need).items())])


def why_waiting(need: Need, nodes: Sequence[Node], held: Mapping[str, Need]) -> str:
    """Why no node can take the worker now; empty when one can. ``held`` is what our instances have in all, by name."""
    asked = wanted(need)
    if any(_has(node.free, asked) for node in nodes):
        return ""
    lacking = [
        f"{amount:g} {name} per worker, the cluster has {_in_all(name, 'free', nodes):g} of "
        f"{_in_all(name, 'total', nodes):g} free{_holders(name, nodes, held)}"
        for name, amount in asked.items()
        if not any(_has(node.free, {name: amount}) for node in nodes)
    ]
    if not lacking:
        lacking = [f"{_list(asked)} per worker, which no node has free together"]
    return f"waiting for a place: asked {'; '.join(lacking)}"


def check_need(spec: DeploymentSpec) -> None:
    """Refuse amounts that Ray takes from nobody.

    Raises:
        InvalidInput: names the flag.
    """
    if spec.is_saas and spec.resources:
        raise InvalidInput(
            f"--resources is not for {spec.pretrained_model_type}: its workers are calls to a vendor, no processes.",
            param="resources",
        )
    for name, amount in wanted(Need.of(spec)).items():
        if amount < SMALLEST and not spec.is_saas:
            flag = _FLAGS.get(name, f"--resources {name}")
            raise InvalidInput(
                f"{flag} {amount:g} is less than Ray counts: the smallest share is {SMALLEST:g}.",
                param=flag.removeprefix("--").split()[0],
            )
        if amount > 1 and amount != int(amount) and not spec.is_saas:
            flag = _FLAGS.get(name, f"--resources {name}=")
            raise InvalidInput(
                f"{flag} {amount:g} must be a whole number, or a fraction below 1.", param=flag.strip("-= ").split()[0]
            )


def check_possible(need: Need, nodes: Sequence[Node]) -> None:
    """Refuse what no node could take even if it were empty.

    Raises:
        CapacityExceeded: names what is lacking and what the largest node has.
    """
    asked = wanted(need)
    names = {name for node in nodes for name in node.total}
    for name, amount in asked.items():
        if name in need.resources and name not in names:
            raise _no_such_resource(name, names)
        largest = max((node.total.get(name, 0.0) for node in nodes), default=0.0)
        if amount > largest + _ROUNDING:
            raise _impossible(f"{amount:g} {name}, but no node of the cluster has more than {largest:g}")
    if not any(_has(node.total, asked) for node in nodes):
        raise _impossible(f"{_list(asked)}, but no node of the cluster has them together")


def bundles(cpus: float, nodes: Sequence[Node]) -> list[float]:
    """CPUs in pieces that each fit on a node: as few as can be. Ray counts in ten-thousandths."""
    cpus = max(round(cpus, 4), SMALLEST)
    largest = max((node.total.get("CPU", 0.0) for node in nodes), default=0.0)
    if largest <= 0 or cpus <= largest:
        return [cpus]
    whole, rest = divmod(cpus, int(largest))
    return [float(int(largest))] * int(whole) + ([round(rest, 4)] if rest > _ROUNDING else [])


def _has(amounts: Mapping[str, float], asked: Mapping[str, float]) -> bool:
    return all(amounts.get(name, 0.0) + _ROUNDING >= amount for name, amount in asked.items())


def _in_all(name: str, of: Literal["free", "total"], nodes: Iterable[Node]) -> float:
    return sum((node.free if of == "free" else node.total).get(name, 0.0) for node in nodes)


def _holders(name: str, nodes: Sequence[Node], held: Mapping[str, Need]) -> str:
    """Who has what is not free: our instances by name, and the cluster's other users."""
    ours = {instance: wanted(need).get(name, 0.0) for instance, need in held.items()}
    holders = sorted(instance for instance, amount in ours.items() if amount)
    used = _in_all(name, "total", nodes) - _in_all(name, "free", nodes)
    if used > sum(ours.values()) + _ROUNDING:
        holders.append("other users of the cluster")
    return f", held by {', '.join(holders)}" if holders else ""


def _list(asked: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in asked.items())


def _impossible(what: str) -> CapacityExceeded:
    return CapacityExceeded(
        f"A worker asks for {what}.",
        hint="Ask for less, add such a node, or use --no_wait to have it wait until there is one.",
    )


def _no_such_resource(name: str, names: Iterable[str]) -> CapacityExceeded:
    custom = sorted(n for n in names if n not in ("CPU", "GPU", "memory", "object_store_memory") and ":" not in n)
    return CapacityExceeded(
        f"--resources {name}: no node of the cluster has that resource. There are: {', '.join(custom) or 'none'}.",
        hint=f"A node gets it at its start: ray start --address HOST:PORT --resources '{{\"{name}\": 1}}'",
        param="resources",
    )
