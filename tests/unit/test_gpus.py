from __future__ import annotations

import pytest

from byzerllm.errors import InvalidInput
from byzerllm.runtime.capacity import among, assign_gpus


@pytest.mark.parametrize(
    ("free", "wanted", "given"),
    [
        ({}, 0, ()),
        ({}, 1, None),
        ({0: 1.0, 1: 1.0, 2: 1.0}, 2, (0, 1)),
        ({0: 0.5, 1: 1.0, 2: 1.0}, 2, (1, 2)),
        ({0: 0.5, 1: 1.0}, 2, None),
        ({0: 1.0, 1: 0.5}, 0.5, (1,)),
        ({0: 0.7, 1: 0.4, 2: 0.4}, 0.4, (1,)),
        ({0: 0.3, 1: 0.4}, 0.5, None),
        ({0: 1 - 0.1 - 0.2 - 0.3}, 0.4, (0,)),
    ],
)
def test_assignment(free: dict[int, float], wanted: float, given: tuple[int, ...] | None) -> None:
    assert assign_gpus(free, wanted) == given


def test_more_than_one_device_must_be_whole() -> None:
    with pytest.raises(InvalidInput, match=r"1\.5 must be a whole number"):
        assign_gpus({0: 1.0, 1: 1.0}, 1.5)


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        ("", ()),
        ("-1", ()),
        ("1", ("1",)),
        ("1,0", ("1", "0")),
        ("0,7,1", ("0",)),
        ("0,0", ("0",)),
        ("GPU-8932f937", ("GPU-8932f937",)),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(chosen: str, kept: tuple[str, ...]) -> None:
    assert among(("0", "1"), chosen) == kept


def test_without_a_driver_no_name_makes_a_device() -> None:
    assert among((), "0,GPU-8932f937") == ()
