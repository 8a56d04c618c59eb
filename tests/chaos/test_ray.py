"""What dies on a Ray cluster is brought back: engines, their holders, the server, nodes, the cluster itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

import pytest
from tests.chaos.test_kill import text
from tests.fixtures_models import SAY
from tests.harness import eventually
from tests.integration.test_private import ask, deploy, detail, pids
from tests.integration.test_ray_placement import gone, hosts, left_alive
from tests.ray_cluster import RayByzer, RayCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ZEPHYR = {"CPU": 2, "zephyr": 1}
MOCK = ("--pretrained_model_type", "saas/mock")
BACK_SECONDS = 3 * 3.0  # until requests succeed: three times what is promised, since this machine may be loaded
LONG = 60.0


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def pid_of(cluster: RayCluster, name: str, namespace: str = "byzerllm") -> int:
    """The process of a living actor; 0 while there is none."""
    return next((a.pid for a in cluster.actors(namespace) if (a.name, a.state) == (name, "ALIVE")), 0)


def restarted(cluster: RayCluster, before: int, name: str = "byzerllm", namespace: str = "byzerllm") -> bool:
    return pid_of(cluster, name, namespace) not in (0, before)


def answers(byzer: RayByzer, name: str) -> bool:
    try:
        return text(ask(byzer, name, timeout=30)) == SAY
    except (OSError, HTTPException, KeyError, FileNotFoundError, ValueError):  # there is no server now
        return False


def is_ready(byzer: RayByzer, name: str, without: int = 0) -> bool:
    found = detail(byzer, name)
    return found["deployment_state"] == "ready" and without not in [p["pid"] for p in found["processes"]]


class Load:
    """Callers that ask as long as it is open, and what they got."""

    def __init__(self, byzer: RayByzer, name: str, callers: int) -> None:
        self.good: list[tuple[float, str]] = []  # when it was asked, and the answer
        self.broken: list[Exception] = []
        self._ask: Callable[[], str] = lambda: text(ask(byzer, name))
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._keep_asking) for _ in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _keep_asking(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                self.good.append((begun, self._ask()))
            except (OSError, HTTPException) as error:
                self.broken.append(error)
                self._stop.wait(0.05)

    def since(self, moment: float) -> bool:
        """Whether a request of after that moment has succeeded."""
        return any(begun > moment for begun, _ in list(self.good))


def test_a_killed_engine_comes_back(ray_byzer: RayByzer, tiny_gguf: Path) -> None:
    byzer = ray_byzer
    deploy(byzer, "tiny", tiny_gguf, "--num_workers", "2")
    first, second = pids(byzer, "tiny")
    kill(first)
    for _ in range(6):  # the other worker answers meanwhile, and a request that met the dead one is tried again
        assert text(ask(byzer, "tiny")) == SAY
    eventually(lambda: is_ready(byzer, "tiny", without=first), LONG)
    assert sorted(p["restarts"] for p in detail(byzer, "tiny")["processes"]) == [0, 1]
    assert second in pids(byzer, "tiny")
    assert byzer.json("stat", "--model", "tiny")["state"] == [1, 1]


def test_a_killed_holder_takes_its_engine_with_it_and_the_worker_is_started_anew(
    ray_byzer: RayByzer, ray_cluster: RayCluster, tiny_gguf: Path
) -> None:
    byzer = ray_byzer
    deploy(byzer, "tiny", tiny_gguf)
    engine = pids(byzer, "tiny")[0]
    kill(pid_of(ray_cluster, "engine:tiny.1.0"))
    eventually(lambda: gone([engine]), LONG)
    assert text(ask(byzer, "tiny")) == SAY  # it waits for the next one
    eventually(lambda: is_ready(byzer, "tiny", without=engine), LONG)
    assert pid_of(ray_cluster, "engine:tiny.1.0")


def test_a_server_killed_under_load_is_back_with_the_same_engines(
    ray_byzer: RayByzer, ray_cluster: RayCluster, tiny_gguf: Path
) -> None:
    byzer = ray_byzer
    deploy(byzer, "tiny", tiny_gguf, "--num_workers", "2", "--worker_concurrency", "2")
    byzer.run("deploy", "--model", "mock", *MOCK, "--num_workers", "3")
    engines, url, token = pids(byzer, "tiny"), byzer.url, byzer.token
    with Load(byzer, "tiny", callers=4) as load:
        for _ in range(2):
            eventually(lambda: load.good, LONG)
            before = pid_of(ray_cluster, "byzerllm")
            killed = time.monotonic()
            kill(before)
            eventually(partial(load.since, killed), BACK_SECONDS, "a request that succeeds again")
            eventually(partial(restarted, ray_cluster, before), LONG)
    assert {answer for _, answer in load.good} == {SAY}
    assert (byzer.url, byzer.token) == (url, token)
    assert pids(byzer, "tiny") == engines
    assert [p["restarts"] for p in detail(byzer, "tiny")["processes"]] == [0, 0]
    assert byzer.json("stat", "--model", "mock")["total_workers"] == 3
    assert byzer.run("query", "--model", "mock", "--query", "still there").stdout == "You said: still there\n"


def test_what_nobody_has_noted_is_gone_when_the_server_is_back(
    ray_byzer: RayByzer, ray_cluster: RayCluster, tiny_gguf: Path
) -> None:
    """The server dies after Ray has heard of a holder or of CPUs, and before anything says whose they are."""
    byzer = ray_byzer
    deploy(byzer, "waits", tiny_gguf, "--gpus_per_worker", "2")
    deploy(byzer, "later", tiny_gguf, "--gpus_per_worker", "1", "--no_wait")
    eventually(lambda: "engine:later.1.0" in left_alive(ray_cluster), LONG)  # it has no place, and no note
    ray_cluster.program(
        """
from byzerllm.runtime.ray import Cluster
ray.shutdown()
cluster = Cluster.connect(args[0])  # in the server's own namespace
cluster.reserve("ghost", [1.0])
for name in ("ghost.1.0", "waits.1.7"):
    cluster.create("byzerllm.runtime.holder:EngineHolder", "engine:" + name, name, "/tmp", 0.01, cpus=0.01)
""",
        ray_cluster.address,
    )
    kill(pid_of(ray_cluster, "byzerllm"))
    wanted = {"byzerllm", "waits", "later", "engine:waits.1.0", "engine:later.1.0"}
    eventually(lambda: left_alive(ray_cluster) == wanted and answers(byzer, "waits"), LONG)
    byzer.run("undeploy", "--model", "waits")
    eventually(lambda: is_ready(byzer, "later"), LONG)
    byzer.run("undeploy", "--model", "later")
    assert left_alive(ray_cluster) == {"byzerllm"}
    eventually(lambda: books(ray_cluster) == [12.0, 2.0, 0], LONG)


def books(cluster: RayCluster) -> Any:
    """Free CPUs and GPUs, and how many placement groups there are, as the cluster has it."""
    return cluster.program("""
from ray.util import placement_group_table
free = ray.available_resources()
groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
result = [free.get("CPU", 0), free.get("GPU", 0), len(groups)]
""")


def test_a_name_that_was_killed_elsewhere_is_undeployed_and_one_that_crashed_is_not(
    ray_byzer: RayByzer, ray_cluster: RayCluster, tiny_gguf: Path
) -> None:
    byzer = ray_byzer
    deploy(byzer, "tiny", tiny_gguf)
    engine = pids(byzer, "tiny")[0]

    crashed = eventually(lambda: pid_of(ray_cluster, "tiny", "default"), LONG)
    kill(crashed)
    eventually(lambda: restarted(ray_cluster, crashed, "tiny", "default"), LONG)
    assert pids(byzer, "tiny") == [engine]
    ray_cluster.program("ray.kill(ray.get_actor('tiny'))")
    eventually(lambda: byzer.json("list") == [], LONG)
    assert gone([engine])
    assert left_alive(ray_cluster) == {"byzerllm"}


# Clusters that break


@pytest.fixture(scope="module")
def breaking() -> Iterator[RayCluster]:
    """A head, and a node with a resource that the head has not."""
    with RayCluster({"CPU": 4}, ZEPHYR) as cluster:
        yield cluster


@pytest.fixture
def byzer(breaking: RayCluster, tmp_path: Path) -> Iterator[RayByzer]:
    byzer = RayByzer(tmp_path / "home", **breaking.environ)
    yield byzer
    byzer.stop()
    breaking.clear()


@pytest.mark.timeout(240)
def test_nodes_come_and_go(breaking: RayCluster, byzer: RayByzer, tiny_gguf: Path) -> None:
    deploy(byzer, "spread", tiny_gguf, "--num_workers", "3", "--resources", "zephyr=1", "--no_wait")
    why = "asked 1 zephyr per worker, the cluster has 0 of 1 free, held by spread"
    eventually(lambda: why in detail(byzer, "spread")["reason"], LONG)
    eventually(lambda: answers(byzer, "spread"), LONG)
    nodes = [1, breaking.add_node(ZEPHYR), breaking.add_node(ZEPHYR)]
    eventually(lambda: is_ready(byzer, "spread"), LONG)
    assert hosts(pids(byzer, "spread")) == [breaking.host(node) for node in nodes]

    byzer.run("scale", "--model", "spread", "--num_workers", "2")
    before = {host: pid for pid in pids(byzer, "spread") for host in hosts([pid])}
    lost = next(node for node in nodes if breaking.host(node) in before)
    breaking.kill_node(lost)
    assert answers(byzer, "spread"), "the other worker answers meanwhile"
    eventually(lambda: is_ready(byzer, "spread", without=before[breaking.host(lost)]), LONG)
    assert hosts(pids(byzer, "spread")) == [breaking.host(node) for node in nodes if node != lost]
    assert set(before.values()) & set(pids(byzer, "spread")), "the worker on the other node was left alone"
    assert {text(ask(byzer, "spread")) for _ in range(4)} == {SAY}
    byzer.run("undeploy", "--model", "spread")
    assert left_alive(breaking) == {"byzerllm"}


@pytest.mark.timeout(240)
def test_a_cluster_that_was_started_again_gets_everything_back(
    breaking: RayCluster, byzer: RayByzer, tiny_gguf: Path
) -> None:
    deploy(byzer, "tiny", tiny_gguf, "--resources", "zephyr=1")
    byzer.run("deploy", "--model", "mock", *MOCK, "--num_workers", "3")
    engines = pids(byzer, "tiny")
    breaking.restart()
    assert gone(engines)
    assert "No server is running" in byzer.run("list", code=1).stderr
    said = byzer.run("up").stdout.splitlines()
    assert sorted(said) == ["Model mock deployed successfully", "Model tiny deployed successfully"]
    assert text(ask(byzer, "tiny")) == SAY

    breaking.restart()
    byzer.run("deploy", "--model", "another", *MOCK)
    assert text(ask(byzer, "tiny")) == SAY
    assert byzer.run("query", "--model", "mock", "--query", "hello").stdout == "You said: hello\n"
    assert [d["name"] for d in byzer.json("list")] == ["another", "mock", "tiny"]
