"""The decision that closes the gap between the desired and the actual workers of one instance, pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from byzerllm.control.state import Phase, WorkerView

_LIVE = (Phase.STARTING, Phase.READY, Phase.WAITING)


@dataclass(frozen=True)
class Desired:
    """``workers`` of ``generation``. ``surge``: while replacing, one may be started before an old one ends (there is
    room for both); otherwise an old one ends first."""

    generation: int
    workers: int
    surge: bool = True


@dataclass(frozen=True)
class Start:
    """Start the worker of this index; ``worker_id`` is set where one of this generation waits for its restart."""

    index: int
    worker_id: str | None = None


@dataclass(frozen=True)
class Drain:
    """Take the worker out of rotation, and stop it once its requests are over."""

    worker_id: str


Action = Start | Drain


def reconcile(desired: Desired, workers: Sequence[WorkerView], now: float) -> list[Action]:
    """What to do next. Calling it again with the same input gives the same actions; with them done, none.

    Scaling up starts all that is missing at once, but no worker whose namesake is still leaving. Replacing goes one
    worker at a time until the last old one is gone, and an old worker that serves ends only when a new one is ready in
    its place, unless there is no room for both.
    """
    current = [w for w in workers if w.generation == desired.generation and w.phase in _LIVE]
    actions: list[Action] = [
        Start(w.index, w.id)
        for w in current
        if w.phase is Phase.WAITING and w.index < desired.workers and w.retry_at <= now
    ]
    actions += [Drain(w.id) for w in current if w.index >= desired.workers]
    missing = sorted(set(range(desired.workers)) - {w.index for w in workers if w.generation == desired.generation})
    if all(w.generation == desired.generation for w in workers):
        return actions + [Start(index) for index in missing]
    return actions + _roll(desired, workers, current, missing)


def _roll(
    desired: Desired,
    workers: Sequence[WorkerView],
    current: Sequence[WorkerView],
    missing: Sequence[int],
) -> list[Action]:
    old = [w for w in workers if w.generation != desired.generation]
    ready = sum(1 for w in current if w.phase is Phase.READY)
    serving = sorted((w for w in old if w.phase is Phase.READY), key=lambda w: -w.index)
    drains: list[Action] = [Drain(w.id) for w in old if w.phase in (Phase.STARTING, Phase.WAITING)]
    surplus = len(serving) + ready - desired.workers
    if surplus > 0:
        drains += [Drain(w.id) for w in serving[:surplus]]
    if len(current) > ready or not missing:  # one at a time
        if any(w.waiting for w in current) and len(old) == len(serving) > 0:
            return [Drain(serving[0].id)]  # there was room, and it is gone: the new one gets the old one's place
        return drains
    if len(workers) < desired.workers + (1 if desired.surge else 0):  # those that leave take up room too
        return [*drains, Start(missing[0])]
    if not desired.surge and not drains and len(workers) == len(serving) + ready:
        return [Drain(serving[0].id)]  # its place is needed; the start follows when it is gone
    return drains
