"""Several keys of one vendor: a key that is refused rests, and the others go on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.unit.slots import make, queue, run, story, take, ticks, upstream

from byzerllm.errors import UpstreamError
from byzerllm.relay.target import Target
from byzerllm.routing.instance import Instance
from byzerllm.routing.worker import Worker

REFUSED = UpstreamError("invalid key", status=401)


def keyed(workers: int, keys: int, capacity: int = 1) -> Instance:
    """Workers with key i modulo their number."""
    made = make()
    upstreams = [upstream() for _ in range(keys)]
    for index in range(workers):
        made.add(Worker(index, str(index), capacity, upstreams[index % keys], 0.0))
    return made


def in_rotation(made: Instance) -> list[int]:
    return [w.index for w in made.workers if w.in_rotation]


@pytest.mark.parametrize("status", [401, 402, 403, 429])
def test_only_the_workers_of_the_key_rest_and_all_their_slots_come_back(status: int) -> None:
    async def main() -> None:
        made = keyed(4, 2, capacity=2)
        made.failed(made.workers[0], UpstreamError("no", status=status, retry_after=3))
        assert in_rotation(made) == [1, 3]
        assert [take(made).worker.index for _ in range(4)] == [1, 3, 1, 3]
        assert made.lease_nowait() is None
        await asyncio.sleep(2.9)
        assert in_rotation(made) == [1, 3]
        await asyncio.sleep(0.2)
        assert in_rotation(made) == [0, 1, 2, 3]
        assert [made.workers[0].free, made.workers[2].free] == [2, 2]

    run(main())


@story
async def test_the_only_key_never_rests() -> None:
    made = keyed(3, 1)
    made.failed(made.workers[0], REFUSED)
    assert in_rotation(made) == [0, 1, 2]


@story
async def test_the_last_key_in_rotation_never_rests() -> None:
    made = keyed(3, 3)
    for worker in made.workers:
        made.failed(worker, REFUSED)
    assert in_rotation(made) == [2]
    made.failed(made.workers[2], REFUSED)
    assert in_rotation(made) == [2]


@story
async def test_engines_are_no_keys_of_one_another() -> None:
    made = make(1, 1)
    other = made.workers[1]
    other.upstream = replace(other.upstream, target=Target(False, "127.0.0.1", 2))
    made.failed(made.workers[0], UpstreamError("busy", status=429))
    assert in_rotation(made) == [0, 1]


@story
async def test_answers_that_were_under_way_do_not_make_the_rest_longer() -> None:
    made = keyed(4, 2)
    made.failed(made.workers[0], UpstreamError("no", status=429, retry_after=2))
    await asyncio.sleep(1)
    made.failed(made.workers[2], UpstreamError("no", status=429, retry_after=2))
    await asyncio.sleep(1.1)
    assert in_rotation(made) == [0, 1, 2, 3]


@story
async def test_who_waits_is_served_when_a_key_has_rested() -> None:
    made = keyed(2, 2)
    busy = [take(made), take(made)]
    made.failed(made.workers[0], UpstreamError("no", status=429, retry_after=1))
    (waiting,) = queue(made, 1)
    await ticks()
    busy[0].release()
    await ticks()
    assert not waiting.done()  # its slot is free, but its key rests
    await asyncio.sleep(1.1)
    assert (await waiting).worker is made.workers[0]


@story
async def test_a_worker_that_is_left_out_for_its_failures_stays_so() -> None:
    made = keyed(3, 2)
    broken = made.workers[2]
    for _ in range(5):
        made.failed(broken, UpstreamError("broken", status=500))
    until = broken.open_until
    made.failed(made.workers[0], UpstreamError("no", status=429, retry_after=60))
    assert broken.open_until == until
    await asyncio.sleep(1.1)
    assert broken.probing
