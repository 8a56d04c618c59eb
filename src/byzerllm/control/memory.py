"""Whether the weights and the context of an instance fit into memory, looked at before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from byzerllm.errors import CapacityExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from byzerllm.engines.base import Memory
    from byzerllm.runtime.base import Room, Runtime
    from byzerllm.spec import DeploymentSpec

TOLERANCE = 1.05  # what is free is measured, what is needed is computed: neither is exact
_GIB = 1024**3


class MemoryCheck:
    """Compares what instances need with what their runtime has.

    An instance takes its memory little by little: while it is ``loading``, nobody else is promised what it will take.
    """

    def __init__(self, runtime: Runtime, loading: Callable[[str], bool]) -> None:
        self._runtime = runtime
        self._loading = loading
        self._left: dict[str, int] = {}  # bytes of the machine that are free once that instance is loaded

    async def look(self, spec: DeploymentSpec, memory: Memory, workers: int, leaving: int = 0) -> str:
        """Why ``workers`` workers more of ``spec`` do not fit, while older ones give ``leaving`` bytes of the machine's
        memory back; empty if they do, or where that cannot be told."""
        room = await self._runtime.memory(spec, spec.num_workers, on_gpu=memory.on_gpu)
        if room is None:
            return ""
        if memory.on_gpu:
            return shortage(spec.name, memory, workers, room)
        if needed(memory, workers) - leaving < needed(memory, 1):
            workers, leaving = 1, 0  # the first of them is there before an older one leaves
        self._left = {name: left for name, left in self._left.items() if name != spec.name and self._loading(name)}
        others = sorted(name for name, left in self._left.items() if left < room.free)
        room = room.with_free(min([room.free, *self._left.values()]))
        self._left[spec.name] = room.free - needed(memory, workers) + leaving
        why = shortage(spec.name, memory, workers, room, leaving)
        return f"{why} {' and '.join(others)} is still being loaded." if why and others else why


def needed(memory: Memory, workers: int) -> int:
    """Bytes of the machine's memory for so many workers; weights that are mapped they have once."""
    return workers * memory.cache + memory.weights * (1 if memory.mapped else workers)


def held(memory: Memory, workers: int) -> int:
    """Bytes of the machine's memory that so many workers give back when they end. Weights that are mapped are none of
    them: they count as free while they are in use."""
    if memory.on_gpu:
        return 0
    return workers * (memory.cache + (0 if memory.mapped else memory.weights))


def shortage(name: str, memory: Memory, workers: int, room: Room, leaving: int = 0) -> str:
    """Why it does not fit into ``room`` and the ``leaving`` bytes, with the numbers; empty if it does."""
    wanted = (memory.weights + memory.cache) // memory.shares if memory.on_gpu else needed(memory, workers)
    if wanted - leaving <= room.free * TOLERANCE:
        return ""
    parts = f"{_size(memory.weights)} of weights and {_size(memory.cache)} for the context"
    if memory.on_gpu:
        where = "of each GPU's memory" if memory.shares > 1 else "of a GPU's memory"
        parts += f", shared by {memory.shares} GPUs" if memory.shares > 1 else ""
    else:
        where = "of memory"
        parts = f"each of {workers} workers: {parts}" if workers > 1 else parts
    free = f"{_size(max(0, room.free))} of {_size(room.total)} are free"
    free += f" and its older workers leave {_size(leaving)}" if leaving else ""
    holders = f", much is held by {', '.join(room.holders)}" if room.holders else ""
    return f"{name} needs {_size(wanted)} {where} ({parts}), but {free}{holders}."


def refusal(why: str, unchecked: str = "--no_verify") -> CapacityExceeded:
    """The error for an instance that does not fit; ``unchecked`` is how it is deployed all the same."""
    smaller = "Take a smaller or quantised model, a shorter context or fewer workers."
    return CapacityExceeded(why, hint=f"{smaller} {unchecked} deploys without this check.")


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB / 10 else f"{count / 1024**2:.1f} MiB"
