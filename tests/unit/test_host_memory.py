"""How much memory keys and values may take, and the size of the block that they lie in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.engines.host import loading
from byzerllm.engines.host.block import EMPTY, GROWTH, Block

IN_USE = st.tuples(st.integers(1, 40), st.integers(1, 5000))  # rows, and the tokens of the longest


@given(st.lists(IN_USE, min_size=1, max_size=12), st.integers(5000, 20_000))
def test_a_block_has_a_place_for_what_fits_and_takes_no_more_than_there_is(
    asked: list[tuple[int, int]], most: int
) -> None:
    block = EMPTY
    for wanted, length in asked:
        rows = max(1, min(wanted, most // length))
        block = block.grown(rows, length, most)
        assert block.rows >= rows
        assert block.capacity >= length
        assert block.rows * block.capacity <= most


def test_a_block_that_is_large_enough_stays() -> None:
    block = Block(4, 512)
    assert block.grown(3, 512, 10**6) is block
    assert EMPTY.grown(0, 0, 10**6) is EMPTY


def test_a_block_grows_by_half_and_in_doubles() -> None:
    sizes, block = set(), EMPTY
    for length in range(1, 10_001):
        block = block.grown(1, length, 10**6)
        sizes.add(block.capacity)
    assert len(sizes) < 12
    assert all(size % GROWTH == 0 for size in sizes)
    assert Block(4, 256).grown(5, 200, 10**6) == Block(8, 256)


def test_a_block_that_must_grow_has_only_the_rows_in_use() -> None:
    assert Block(8, 256).grown(1, 257, 2048) == Block(1, 512)
    assert Block(8, 256).grown(3, 257, 1024) == Block(3, 341)


def test_workers_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_free_memory", lambda: 8000)
    cpu = [SimpleNamespace(type="cpu")]
    assert loading.cache_budget(cpu, {"sharers": 1, "gpus": 0}) == 4000
    assert loading.cache_budget(cpu, {"sharers": 4, "gpus": 0}) == 1000


@pytest.mark.parametrize(
    ("free", "own", "share", "room"),
    [
        (800, 200, 1, 720),  # a whole GPU: what is free
        (800, 200, 2, 720),
        (800, 200, 0.5, 250),  # half of it, less the weights
        (100, 200, 0.5, 90),  # another holds more than its share
        (800, 500, 0.5, 0),
    ],
)
def test_part_of_a_gpu_has_part_of_its_memory(free: int, own: int, share: float, room: int) -> None:
    assert loading.gpu_room(free, 1000, own, share) == room
