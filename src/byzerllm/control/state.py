"""The life of an instance and of its engine workers, pure.

    instance:  pending -> starting -> ready <-> degraded -> draining -> gone, or failed with the reason
    worker:    starting -> ready -> draining -> stopping -> (gone)
                  \\          \\
                   +-----------+--> waiting (its process ended or hung) -> starting, after a pause

Why was my worker restarted? Its process ended, or it did not answer three probes in a row while no token came from
it; ``WorkerView.error`` says which, ``restart_pause`` when it comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

RESTART_FIRST = 0.5  # seconds
RESTART_LONGEST = 60.0
STEADY_AFTER = 60.0  # seconds of life after which earlier failures no longer count


class Phase(str, Enum):
    """Where an engine worker stands."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    DRAINING = "draining"
    STOPPING = "stopping"


class State(str, Enum):
    """Where an instance stands."""

    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class WorkerView:
    """What the decisions need to know of one engine worker. Times are of the loop's clock.

    ``error`` is why it last went down, ``waiting`` why there is no place for it yet.
    """

    id: str
    index: int
    generation: int
    phase: Phase
    retry_at: float = 0.0
    error: str = ""
    waiting: str = ""


def restart_pause(failures: int) -> float:
    """Seconds before the next start after so many failures in a row."""
    return float(min(RESTART_FIRST * 2.0 ** min(failures - 1, 10), RESTART_LONGEST))


def instance_state(wanted: int, workers: Sequence[WorkerView], *, draining: bool) -> tuple[State, str]:
    """The instance's state and, where not all is well, the reason."""
    if draining:
        return State.DRAINING, ""
    ready = sum(1 for w in workers if w.phase is Phase.READY)
    waiting = [w.waiting for w in workers if w.waiting and w.phase is Phase.STARTING]
    errors = [w.error for w in workers if w.error and w.phase in (Phase.WAITING, Phase.STARTING)]
    reason = (waiting + errors)[0] if waiting or errors else ""
    if ready >= wanted:
        return State.READY, ""
    if ready:
        return State.DEGRADED, reason or f"{ready} of {wanted} workers are ready"
    if waiting:
        return State.PENDING, reason
    if errors:
        return State.FAILED, reason
    if any(w.phase is Phase.STARTING for w in workers):
        return State.STARTING, ""
    return State.PENDING, ""
