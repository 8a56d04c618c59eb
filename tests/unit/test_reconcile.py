"""The reconciler in a simulated world: workers start, fail, die, drain and go, and the desired state changes."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byzerllm.control.reconcile import Action, Desired, Drain, Start, reconcile
from byzerllm.control.state import Phase, WorkerView

LEAVING = (Phase.DRAINING, Phase.STOPPING)


class World:
    """The workers of one instance. ``room`` is how many may exist at a time; a start beyond it fails, as with GPUs."""

    def __init__(self, desired: Desired, room: int | None = None) -> None:
        self.desired = desired
        self.room = room
        self.workers: dict[str, WorkerView] = {}
        self.now = 0.0
        self.without_room = 0

    def view(self) -> list[WorkerView]:
        return list(self.workers.values())

    @property
    def ready(self) -> int:
        return sum(1 for w in self.workers.values() if w.phase is Phase.READY)

    def act(self) -> list[Action]:
        if self.room is not None:
            self.desired = replace(self.desired, surge=len(self.workers) < self.room)
        actions = reconcile(self.desired, self.view(), self.now)
        assert actions == reconcile(self.desired, self.view(), self.now)
        for action in actions:
            if isinstance(action, Drain):
                assert self.workers[action.worker_id].phase not in LEAVING
                self.put(action.worker_id, Phase.DRAINING)
            elif action.worker_id is None:
                self.start_new(action.index)
            else:
                waiting = self.workers[action.worker_id]
                assert (waiting.phase, waiting.generation) == (Phase.WAITING, self.desired.generation)
                assert waiting.index == action.index
                assert waiting.retry_at <= self.now
                self.put(action.worker_id, Phase.STARTING)
        return actions

    def start_new(self, index: int) -> None:
        id = f"{self.desired.generation}.{index}"
        assert id not in self.workers, "a second worker of that name"
        assert 0 <= index < self.desired.workers
        if self.room is not None and len(self.workers) >= self.room:
            self.without_room += 1
            self.workers[id] = WorkerView(id, index, self.desired.generation, Phase.WAITING, self.now + 1)
        else:
            self.workers[id] = WorkerView(id, index, self.desired.generation, Phase.STARTING)

    def put(self, id: str, phase: Phase, retry_at: float = 0.0) -> None:
        self.workers[id] = replace(self.workers[id], phase=phase, retry_at=retry_at)

    def advance(self, random: Random, trouble: float = 0.0) -> None:
        """One worker makes one step of its life, or time passes."""
        self.now += 0.5
        moving = [w for w in self.view() if w.phase is not Phase.READY or random.random() < trouble]
        if not moving:
            return
        w = random.choice(moving)
        if w.phase in (Phase.STARTING, Phase.READY):
            bad = w.phase is Phase.READY or random.random() < trouble
            self.put(w.id, Phase.WAITING if bad else Phase.READY, self.now + random.choice([0.5, 2.0]))
        elif w.phase is Phase.DRAINING:
            self.put(w.id, Phase.STOPPING)
        elif w.phase is Phase.STOPPING:
            del self.workers[w.id]

    def run_until_quiet(self, random: Random) -> None:
        for _ in range(600):
            if not self.act() and all(w.phase is Phase.READY for w in self.view()):
                return
            self.advance(random)
        raise AssertionError(f"it never comes to rest: {self.desired}, {self.view()}")

    def assert_as_desired(self) -> None:
        generation, count = self.desired.generation, self.desired.workers
        assert sorted((w.generation, w.index, w.phase) for w in self.view()) == [
            (generation, index, Phase.READY) for index in range(count)
        ]


def healthy(count: int, *, surge: bool = True, room: int | None = None) -> World:
    world = World(Desired(1, count, surge), room)
    world.run_until_quiet(Random(0))
    world.assert_as_desired()
    return world


@given(st.randoms(use_true_random=False), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_whatever_happens_the_world_comes_to_what_is_desired(random: Random, surge: bool, tight: bool) -> None:
    world = World(Desired(1, random.randint(1, 5), surge), room=5 if tight else None)
    for _ in range(random.randint(0, 60)):
        world.act()
        world.advance(random, trouble=0.3)
        change = random.random()
        if change < 0.06:
            world.desired = replace(world.desired, workers=random.randint(1, 5))
        elif change < 0.12:
            world.desired = replace(world.desired, generation=random.randint(1, 3))  # replaced, or back after a failure
    world.run_until_quiet(random)
    world.assert_as_desired()


@given(st.randoms(use_true_random=False), st.integers(1, 6), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_replacement_of_a_healthy_instance_keeps_it_serving(random: Random, count: int, surge: bool) -> None:
    world = healthy(count, surge=surge)
    world.desired = replace(world.desired, generation=2)
    while world.act() or any(w.phase is not Phase.READY for w in world.view()):
        assert world.ready >= (count if surge else count - 1)
        assert len(world.workers) <= (count + 1 if surge else count)
        world.advance(random)
    world.assert_as_desired()


@given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(0, 2), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_a_replacement_starts_nothing_that_has_no_room(random: Random, count: int, spare: int, new_count: int) -> None:
    room = max(count, new_count) + spare
    world = healthy(count, room=room)
    for w in world.view():
        if random.random() < 0.3:
            world.put(w.id, Phase.STARTING)
    world.desired = replace(world.desired, generation=2, workers=new_count)
    world.run_until_quiet(random)
    world.assert_as_desired()
    assert world.without_room == 0


@given(st.randoms(use_true_random=False), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_scaling_leaves_the_workers_that_stay_alone(random: Random, before: int, after: int) -> None:
    world = healthy(before)
    world.desired = replace(world.desired, workers=after)
    for _ in range(100):
        for action in world.act():
            assert action.index >= before if isinstance(action, Start) else int(action.worker_id[2:]) >= after
        world.advance(random)
        assert world.ready >= min(before, after)
    world.assert_as_desired()


def view(index: int, phase: Phase, generation: int = 1, retry_at: float = 0.0) -> WorkerView:
    return WorkerView(f"{generation}.{index}", index, generation, phase, retry_at)


@pytest.mark.parametrize(
    ("desired", "workers", "actions"),
    [
        pytest.param(Desired(1, 2), [], [Start(0), Start(1)], id="all that is missing starts at once"),
        pytest.param(Desired(1, 1), [view(0, Phase.WAITING, retry_at=10.5)], [], id="the pause is not over"),
        pytest.param(Desired(1, 1), [view(0, Phase.WAITING, retry_at=10)], [Start(0, "1.0")], id="the pause is over"),
        pytest.param(
            Desired(1, 1),
            [view(0, Phase.READY), view(1, Phase.WAITING), view(2, Phase.STARTING)],
            [Drain("1.1"), Drain("1.2")],
            id="scaled down, what is not ready goes too",
        ),
        pytest.param(
            Desired(1, 2), [view(0, Phase.READY), view(1, Phase.DRAINING)], [], id="its namesake is still leaving"
        ),
        pytest.param(Desired(2, 1), [view(0, Phase.READY)], [Start(0)], id="replaced: the new one first"),
        pytest.param(Desired(2, 1, False), [view(0, Phase.READY)], [Drain("1.0")], id="replaced: no room for both"),
        pytest.param(Desired(2, 1, False), [view(0, Phase.STOPPING)], [], id="the old one still has the room"),
        pytest.param(Desired(2, 1), [view(0, Phase.STOPPING)], [Start(0)], id="the old one leaves, there is room"),
        pytest.param(
            Desired(2, 1), [view(0, Phase.READY), view(0, Phase.READY, 2)], [Drain("1.0")], id="the new one is ready"
        ),
        pytest.param(
            Desired(2, 1), [view(0, Phase.READY), view(0, Phase.STARTING, 2)], [], id="the new one is not ready"
        ),
        pytest.param(
            Desired(2, 1),
            [view(0, Phase.READY), replace(view(0, Phase.STARTING, 2), waiting="asked 1 GPU")],
            [Drain("1.0")],
            id="the room for the new one is gone: it gets the old one's",
        ),
        pytest.param(
            Desired(2, 2),
            [view(0, Phase.READY), view(1, Phase.DRAINING), replace(view(1, Phase.STARTING, 2), waiting="asked 1 GPU")],
            [],
            id="the new one waits, and an old one is leaving",
        ),
        pytest.param(
            Desired(2, 1),
            [view(0, Phase.WAITING)],
            [Drain("1.0"), Start(0)],
            id="what does not serve is not waited for",
        ),
        pytest.param(
            Desired(2, 1),
            [view(0, Phase.READY), view(1, Phase.READY), view(2, Phase.READY)],
            [Drain("1.2"), Drain("1.1")],
            id="replaced by fewer",
        ),
    ],
)
def test_decisions(desired: Desired, workers: list[WorkerView], actions: list[Action]) -> None:
    assert reconcile(desired, workers, now=10.0) == actions
