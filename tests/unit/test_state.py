"""The state of an instance from its workers', and the pauses between restarts."""

from __future__ import annotations

import pytest

from byzerllm.control.state import (
    RESTART_FIRST,
    RESTART_LONGEST,
    Phase,
    State,
    WorkerView,
    instance_state,
    restart_pause,
)


def workers(*phases: Phase, error: str = "") -> list[WorkerView]:
    return [WorkerView(str(n), n, 1, phase, error=error) for n, phase in enumerate(phases)]


@pytest.mark.parametrize(
    ("wanted", "views", "state", "reason"),
    [
        (2, [], State.PENDING, ""),
        (2, workers(Phase.STARTING), State.STARTING, ""),
        (2, workers(Phase.READY, Phase.READY), State.READY, ""),
        (1, workers(Phase.READY, Phase.STARTING), State.READY, ""),
        (2, workers(Phase.READY, Phase.STARTING), State.DEGRADED, "1 of 2 workers are ready"),
        (2, [*workers(Phase.READY), *workers(Phase.WAITING, error="it ended")], State.DEGRADED, "it ended"),
        (2, workers(Phase.WAITING, Phase.STARTING, error="it ended"), State.FAILED, "it ended"),
        (2, workers(Phase.STARTING, error="it ended before"), State.FAILED, "it ended before"),
        (2, workers(Phase.DRAINING, error="old"), State.PENDING, ""),
        (2, workers(Phase.WAITING), State.PENDING, ""),
    ],
)
def test_the_state_and_its_reason(wanted: int, views: list[WorkerView], state: State, reason: str) -> None:
    assert instance_state(wanted, views, draining=False) == (state, reason)
    assert instance_state(wanted, views, draining=True) == (State.DRAINING, "")


def test_the_pause_doubles_up_to_a_minute() -> None:
    assert [restart_pause(n) for n in range(1, 6)] == [RESTART_FIRST, 1.0, 2.0, 4.0, 8.0]
    assert restart_pause(8) == restart_pause(10_000) == RESTART_LONGEST
