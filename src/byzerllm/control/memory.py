"""Whether the weights and the context of an instance fit into memory, looked at before anything is loaded.

Only what certainly cannot fit is refused: workers that have to wait for a place are not looked at, and on a cluster
they are divided among the machines as well as can be. The runtime is told that division, and keeps to it if it can.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from byzerllm.errors import CapacityExceeded
from byzerllm.runtime.base import Room

if TYPE_CHECKING:
    from byzerllm.engines.base import Memory
    from byzerllm.runtime.base import Runtime, Site
    from byzerllm.spec import DeploymentSpec

TOLERANCE = 1.05  # what is free is measured, what is needed is computed: neither is exact
_ROUNDING = 1e-9
_GIB = 1024**3


@dataclass(frozen=True)
class Spot:
    """What one machine has for new workers: ``places`` of them in its ``room``, and in the ``leaving`` bytes that older
    workers give back. On a cluster it has an address, ``host``. Where the memory is not ``known``, whatever has a place
    may fit, and goes there last."""

    room: Room
    places: int
    leaving: int = 0
    host: str = ""
    known: bool = True

    def left(self, taken: int) -> float:
        """Bytes that are free when so many are taken; below zero they do not fit."""
        if not self.known:
            return 0.0
        return self.room.free * TOLERANCE + self.leaving - taken


class MemoryCheck:
    """Compares what instances need with what their runtime has.

    An instance takes its memory little by little: while it is ``loading``, nobody else is promised what it will take.
    """

    def __init__(self, runtime: Runtime, loading: Callable[[str], bool]) -> None:
        self._runtime = runtime
        self._loading = loading
        self._left: dict[str, dict[str, int]] = {}  # by instance and node: bytes that are free once it is loaded

    async def look(
        self, spec: DeploymentSpec, memory: Memory, workers: int, old: Memory | None = None, *, binding: bool = True
    ) -> str:
        """Why ``workers`` workers more of ``spec`` do not fit; empty if they do, or where that cannot be told.

        Older ones stay, but with ``old``, which is what each of them needs, they leave one by one. What does not fit
        will not be started if the answer is ``binding``: nothing is promised to it then.
        """
        sites = await self._runtime.memory(spec, on_gpu=memory.on_gpu)
        if memory.on_gpu:
            if why := gpu_shortage(spec, memory, sites):
                return why
            workers = workers if old is None else 1  # one at a time loads, and then has nothing of the machine's memory
        self.forget_loaded()
        loading = [name for name, left in self._left.items() if _restricts(left, sites)]
        beside = [self._spot(spec, memory, site, None) for site in sites]
        first = divide(memory, 0 if old is None else 1, beside)  # is there before an older one leaves
        spots = [self._spot(spec, memory, site, old) for site in sites]
        counts = divide(memory, workers, spots, first)
        why = shortage(spec.name, memory, workers, spots, counts)
        if old is not None and not why:
            why = _too_early(shortage(spec.name, memory, 1, beside, first), spots)
        if not why or not binding:
            self._left[spec.name] = _left(memory, sites, spots, _all_placed(workers, spots, counts))
            self._runtime.prefer(spec.name, _nodes(sites, first, counts))
        return f"{why} {_loading(loading)}" if why and loading else why

    def forget_loaded(self) -> None:
        """Who has all that was promised takes nothing more, whatever will become of it."""
        self._left = {name: left for name, left in self._left.items() if self._loading(name)}

    def _spot(self, spec: DeploymentSpec, memory: Memory, site: Site, old: Memory | None) -> Spot:
        places = site.places
        if memory.on_gpu and site.gpus is not None:
            places = min(places, len(_fitting(memory, worst_gpus(site.gpus, spec.gpus_per_worker))))
        leaving = 0 if old is None else held(old, site.own)
        places = max(0, places - site.own) if old is None else places
        if site.room is None:
            return Spot(Room(0, 0), places, leaving, site.host, known=False)
        free = min([site.room.free, *(left[site.node] for left in self._left.values() if site.node in left)])
        return Spot(site.room.with_free(max(0, free)), places, leaving, site.host)


def needed(memory: Memory, workers: int) -> int:
    """Bytes of a machine's memory for so many workers there; weights that are mapped they have once."""
    if memory.on_gpu:
        return workers * memory.host
    if memory.mapped and workers:
        return workers * memory.cache + memory.weights
    return workers * (memory.cache + memory.weights)


def held(memory: Memory, workers: int) -> int:
    """Bytes of a machine's memory that so many workers give back when they end. Weights that are mapped are none of
    them: they count as free while they are in use."""
    if memory.on_gpu:
        return 0
    return workers * (memory.cache + (0 if memory.mapped else memory.weights))


def divide(memory: Memory, workers: int, spots: Sequence[Spot], first: Sequence[int] = ()) -> list[int]:
    """How many of the workers each machine gets, one after the other where most is left, but for those that ``first``
    has divided; not all of them if there are too few places or too little memory."""
    counts = list(first) or [0] * len(spots)

    def with_one_more(number: int) -> tuple[float, int, int]:
        return -spots[number].left(needed(memory, counts[number] + 1)), counts[number], number

    heap = [with_one_more(number) for number, spot in enumerate(spots) if counts[number] < spot.places]
    heapq.heapify(heap)
    for _ in range(workers - sum(first)):
        if not heap or heap[0][0] > 0:
            break
        *_, number = heapq.heappop(heap)
        counts[number] += 1
        if counts[number] < spots[number].places:
            heapq.heappush(heap, with_one_more(number))
    return counts


def shortage(name: str, memory: Memory, workers: int, spots: Sequence[Spot], counts: Sequence[int]) -> str:
    """Why so many workers do not fit, with the numbers; empty if they do. ``counts`` is how they are divided."""
    workers, fitting = min(workers, sum(spot.places for spot in spots)), sum(counts)
    if fitting >= workers:
        return ""
    best = max((spot for spot in spots if spot.places and spot.known), key=lambda spot: spot.left(0))
    if memory.on_gpu:
        parts = f"{_size(memory.host)} of weights until they are on its GPUs"
    else:
        parts = f"{_size(memory.weights)} of weights and {_size(memory.cache)} for the context"
    if best.host:
        need = f"{name} needs {_size(needed(memory, 1))} of memory"
        return _of_cluster(need, parts, workers, fitting, best)
    parts = f"each of {workers} workers: {parts}" if workers > 1 else parts
    return f"{name} needs {_size(needed(memory, workers))} of memory ({parts}), but {_free(best)}."


def gpu_shortage(spec: DeploymentSpec, memory: Memory, sites: Sequence[Site]) -> str:
    """Why the workers of ``spec``, with those that run, do not fit on GPUs; empty if they do, or if it is not known."""
    found: list[Spot] = []
    unknown = 0
    for site in sites:
        if site.gpus is None:
            unknown += site.places
        else:
            rooms = worst_gpus(site.gpus, spec.gpus_per_worker)[: site.places]
            found += [Spot(room, 1, 0, site.host) for room in rooms]
    workers = min(spec.num_workers, len(found) + unknown)
    found = sorted(found, key=lambda spot: -spot.room.free)[:workers]
    fitting = len(_fitting(memory, [spot.room for spot in found])) + unknown
    if fitting >= workers:
        return ""
    where = "of each GPU's memory" if memory.shares > 1 else "of a GPU's memory"
    need = f"{spec.name} needs {_size(_of_gpu(memory))} {where}"
    parts = f"{_size(memory.weights)} of weights and {_size(memory.cache)} for the context"
    parts += f", shared by {memory.shares} GPUs" if memory.shares > 1 else ""
    if found[0].host:
        return _of_cluster(need, parts, workers, fitting, found[0])
    return f"{need} ({parts}), but {_free(found[-1])}."


def worst_gpus(gpus: Iterable[Room], share: float) -> list[Room]:
    """For each worker that can have ``share`` GPUs of these the one of its GPUs with the least memory; the first worker
    gets the emptiest."""
    if 0 < share < 1:
        gpus = [gpu.with_free(min(gpu.free, int(gpu.total * share))) for gpu in gpus]
    ordered = sorted(gpus, key=lambda gpu: -gpu.free)
    if share < 1:
        return [gpu for gpu in ordered for _ in range(math.floor(1 / share + _ROUNDING))]
    count = round(share)
    return ordered[count - 1 :: count]


def refusal(why: str, unchecked: str = "--no_verify") -> CapacityExceeded:
    """The error for an instance that does not fit; ``unchecked`` is how it is deployed all the same."""
    smaller = "Take a smaller or quantised model, a shorter context or fewer workers."
    return CapacityExceeded(why, hint=f"{smaller} {unchecked} deploys without this check.")


def _of_gpu(memory: Memory) -> int:
    """Bytes that a worker needs on each of its GPUs."""
    return (memory.weights + memory.cache) // memory.shares


def _fitting(memory: Memory, gpus: Iterable[Room]) -> list[Room]:
    return [gpu for gpu in gpus if _of_gpu(memory) <= gpu.free * TOLERANCE]


def _all_placed(workers: int, spots: Sequence[Spot], counts: Sequence[int]) -> list[int]:
    """The division, with those that do not fit where most is free: that is where they would be loaded all the same."""
    lacking = min(workers, sum(spot.places for spot in spots)) - sum(counts)
    best = max(range(len(spots)), key=lambda number: spots[number].left(0), default=0)
    return [count + (lacking if number == best else 0) for number, count in enumerate(counts)]


def _nodes(sites: Sequence[Site], first: Sequence[int], counts: Sequence[int]) -> list[str]:
    """The node of each worker, in the order of their start."""
    ordered = sorted(range(len(sites)), key=lambda number: -first[number])
    return [sites[number].node for number in ordered for _ in range(counts[number]) if sites[number].node]


def _left(memory: Memory, sites: Iterable[Site], spots: Iterable[Spot], counts: Iterable[int]) -> dict[str, int]:
    """Bytes that are free on each node when so many workers are loaded there, and at the worst until then."""
    return {
        site.node: spot.room.free - max(needed(memory, count) - spot.leaving, needed(memory, 1))
        for site, spot, count in zip(sites, spots, counts, strict=True)
        if count and site.node and spot.known and needed(memory, 1)
    }


def _restricts(left: dict[str, int], sites: Iterable[Site]) -> bool:
    """Whether an instance that leaves so much will take of what is free now."""
    rooms = {site.node: site.room for site in sites if site.room is not None}
    return any(node in rooms and free < rooms[node].free for node, free in left.items())


def _too_early(why: str, spots: Iterable[Spot]) -> str:
    """Why the first new worker does not fit beside the older ones, where all will once these have ended."""
    leaving = sum(spot.leaving for spot in spots)
    return f"{why} Its older workers hold {_size(leaving)}: undeploy it first." if why and leaving else why


def _loading(names: Sequence[str]) -> str:
    return f"{' and '.join(sorted(names))} {'is' if len(names) == 1 else 'are'} still being loaded."


def _of_cluster(need: str, parts: str, workers: int, fitting: int, best: Spot) -> str:
    if fitting:
        need = f"{need} for each of {workers} workers"
        return f"{need} ({parts}), but the nodes have room for {fitting} of them: on {best.host} {_free(best)}."
    if best.room.free == best.room.total:
        return f"{need} ({parts}), but the most that a node has is {_size(best.room.total)}, on {best.host}."
    return f"{need} ({parts}), but the most that a node has free is on {best.host}: {_free(best)}."


def _free(spot: Spot) -> str:
    free = f"{_size(max(0, spot.room.free))} of {_size(spot.room.total)} are free"
    free += f" and its older workers leave {_size(spot.leaving)}" if spot.leaving else ""
    return free + (f", much is held by {', '.join(spot.room.holders)}" if spot.room.holders else "")


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB / 10 else f"{count / 1024**2:.1f} MiB"
