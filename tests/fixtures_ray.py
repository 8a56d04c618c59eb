"""Ray clusters for the tests; ``ray_cluster.py`` says what one can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.ray_cluster import RayByzer, RayCluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A head without GPUs, and two workers that differ: "zephyr" stands for whatever only some machines have.
_HEAD = {"CPU": 4}
_WORKERS = ({"CPU": 4, "GPU": 2, "zephyr": 1}, {"CPU": 4, "zephyr": 1})
_START_INCLUDED = 180.0  # seconds for a test, on a machine that is busy with others


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """More time for what may have to start a cluster; a test's own mark goes first."""
    for item in items:
        if {"ray_cluster", "fresh_ray_cluster"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(_START_INCLUDED))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """Three nodes for all tests that leave them whole."""
    with RayCluster(_HEAD, *_WORKERS) as cluster:
        yield cluster


@pytest.fixture
def fresh_ray_cluster() -> Iterator[RayCluster]:
    """The same three nodes, for a test that breaks some."""
    with RayCluster(_HEAD, *_WORKERS) as cluster:
        yield cluster


@pytest.fixture
def ray_byzer(ray_cluster: RayCluster, tmp_path: Path) -> Iterator[RayByzer]:
    """A home on a machine of the cluster, which is empty again after the test."""
    byzer = RayByzer(tmp_path / "home", **ray_cluster.environ)
    yield byzer
    byzer.stop()
    ray_cluster.clear()
