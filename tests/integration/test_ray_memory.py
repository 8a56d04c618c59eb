"""On a cluster: what fits into no node's memory is refused, and workers go where there is room for them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from scripts import tiny_gguf as tiny
from tests import engine_programs
from tests.harness import eventually
from tests.integration.test_private import LLAMA, ask, detail
from tests.ray_cluster import RayByzer, RayCluster

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

# Of three workers two prefer one node, where there is a place for one of them, and the third a node that is gone.
PREFERRING = """
import asyncio, sys
from byzerllm.engines.base import Launch
from byzerllm.runtime.base import Need
from byzerllm.runtime.on_ray import RayRuntime
from byzerllm.runtime.ray import Cluster

async def hosts(cluster, host):
    runtime = RayRuntime(cluster, args[1])
    wanted = next(node.id for node in cluster.nodes() if node.host == host)
    runtime.prefer("w", [wanted, wanted, "0" * 54 + "ff"])
    launch = Launch(argv=(sys.executable, "-c", "import signal; signal.pause()"), env={}, ready_path="", ready_body=b"")
    began = []
    for number, need in enumerate((Need(0.01, 0, {"zephyr": 1}), Need(0.01, 0, {"zephyr": 1}), Need(0.01))):
        began.append(await runtime.start(f"w.1.{number}", need, lambda *at: launch, token="t", waiting=str))
    for process in began:
        await runtime.stop(process, grace=1)
    return [process.host for process in began]

ray.shutdown()
cluster = Cluster.connect(args[0])
result = [asyncio.run(hosts(cluster, host)) for host in args[2:]]
"""

# A worker on a node on which Ray finds too little memory for anything.
ENDED_BY_RAY = """
import asyncio, sys
from byzerllm.engines.base import Launch
from byzerllm.errors import DeploymentFailed
from byzerllm.runtime.base import Need
from byzerllm.runtime.on_ray import RayRuntime
from byzerllm.runtime.ray import Cluster

async def reason():
    runtime = RayRuntime(Cluster.connect(args[0]), args[1])
    launch = Launch(argv=(sys.executable, "-c", "import signal; signal.pause()"), env={}, ready_path="", ready_body=b"")
    try:
        process = await runtime.start("w.1.0", Need(0.01), lambda *at: launch, token="t", waiting=str)
    except DeploymentFailed as error:
        return str(error)
    while runtime.poll(process) is None:
        await asyncio.sleep(0.1)
    return runtime.poll(process).lost

ray.shutdown()
result = asyncio.run(reason())
"""


@pytest.fixture
def large_gguf(tmp_path: Path) -> Path:
    """A small file whose context would need 256 GiB."""
    path = tmp_path / "large.gguf"
    tiny.write(path, shape=tiny.Shape(ctx=2**30))
    return path


def deploy(byzer: RayByzer, model: Path, context: str, *more: str, code: int = 0) -> Any:
    params = ("--infer_params", f"n_ctx={context}", "n_threads=1")
    return byzer.run("deploy", "--model", "large", *LLAMA, "--model_path", model, *params, *more, code=code)


def test_what_fits_on_no_node_is_refused_with_the_numbers(
    ray_byzer: RayByzer, ray_cluster: RayCluster, large_gguf: Path
) -> None:
    refused = deploy(ray_byzer, large_gguf, "0", code=1)
    assert "byzerllm: error: large needs 256" in refused.stderr
    assert "for the context), but the most that a node has free is on 127.0.0." in refused.stderr
    assert "--no_verify deploys without this check" in refused.stderr
    assert ray_byzer.json("list") == []
    assert not [actor for actor in ray_cluster.actors() if actor.name.startswith("engine:large.")]
    deploy(ray_byzer, large_gguf, "512")
    assert ask(ray_byzer, "large").status == 200


def test_where_there_is_no_gpu_free_it_waits_unless_it_could_never_fit(
    ray_byzer: RayByzer, tiny_gguf: Path, large_gguf: Path
) -> None:
    gpus = ("--infer_params", "n_gpu_layers=0", "--gpus_per_worker", "2")
    ray_byzer.run("deploy", "--model", "holder", *LLAMA, "--model_path", tiny_gguf, *gpus)
    refused = deploy(ray_byzer, large_gguf, "0", *gpus, code=1)
    assert re.search(r"the most that a node has is \S+ GiB, on 127\.0\.0\.3\.", refused.stderr)
    deploy(ray_byzer, large_gguf, "512", *gpus, "--no_wait")
    eventually(lambda: "held by holder" in detail(ray_byzer, "large")["reason"], 30)


def test_without_the_check_it_is_a_warning(ray_byzer: RayByzer, large_gguf: Path) -> None:
    (engine_programs.install(ray_byzer.home, "llama_cpp", engine_programs.SLOW) / "GO").touch()
    done = deploy(ray_byzer, large_gguf, "0", "--no_verify")
    assert "byzerllm: warning: large needs 256" in done.stderr
    refused = ray_byzer.run("scale", "--model", "large", "--num_workers", "3", code=1)
    assert "byzerllm: error: large needs 256" in refused.stderr


def test_a_worker_goes_to_the_node_that_is_preferred_if_it_has_a_place(ray_cluster: RayCluster, tmp_path: Path) -> None:
    one, other = ray_cluster.host(1), ray_cluster.host(2)
    first, second = ray_cluster.program(PREFERRING, ray_cluster.address, str(tmp_path), one, other)
    assert (first[:2], len(first)) == ([one, other], 3)
    assert (second[:2], len(second)) == ([other, one], 3)


@pytest.mark.timeout(180)
def test_beside_a_node_that_does_not_answer_the_others_are_checked(large_gguf: Path, tmp_path: Path) -> None:
    place = {"CPU": 2, "zephyr": 1}
    with RayCluster(place, place) as cluster:
        byzer = RayByzer(tmp_path / "home", **cluster.environ)
        byzer.run("server", "start", "--ray_address", "auto")
        raylet = cluster.processes(1)[0]
        raylet.suspend()
        try:
            refused = deploy(byzer, large_gguf, "0", "--num_workers", "2", "--resources", "zephyr=1", code=1)
            deploy(byzer, large_gguf, "512", "--resources", "zephyr=1")
        finally:
            raylet.resume()
        assert f"but the nodes have room for 1 of them: on {cluster.host(0)} " in refused.stderr
        assert f"large goes last, and unchecked, to {cluster.host(1)}: no answer" in byzer.log_tail()
        holders = [actor for actor in cluster.actors() if actor.name.startswith("engine:large.")]
        assert [actor.node for actor in holders if actor.state == "ALIVE"] == [cluster.host(0)]
        byzer.stop()


@pytest.mark.timeout(180)
def test_a_worker_that_ray_ends_for_lack_of_memory_says_so(tmp_path: Path) -> None:
    scarce = {"RAY_memory_monitor_refresh_ms": "250", "RAY_memory_usage_threshold": "0.001"}
    with RayCluster({"CPU": 1}, **scarce) as cluster:
        reason = cluster.program(ENDED_BY_RAY, cluster.address, str(tmp_path))
    assert re.search(r"its node was out of memory \(\S+GB of \S+GB were in use\), and Ray ended it", reason)
