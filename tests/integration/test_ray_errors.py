"""What a person is told where a command and a Ray cluster do not come together: one paragraph, and what to do next."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.harness import free_port
from tests.integration.test_private import deploy
from tests.older_client.cluster import INSTALL_SECONDS, OURS, install
from tests.ray_cluster import RayByzer, RayCluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOCK = ("--pretrained_model_type", "saas/mock")
TOKEN = "a-token-of-this-test-that-is-long-enough"


def said(text: str) -> list[str]:
    """What a refusal says, by lines: the message, and the hint after it. Nothing follows, and no line is Ray's own."""
    first, *more = text[text.index("byzerllm: error: ") :].splitlines()
    assert len(more) == 1, text
    assert all(len(line) < 300 for line in (first, *more)), text
    return [first.removeprefix("byzerllm: error: "), more[0].strip()]


def refused(byzer: RayByzer, *args: str | Path, code: int = 1, env: dict[str, str] | None = None) -> list[str]:
    """The two lines of a command that must fail with nothing left in its home and nothing on its stdout."""
    done = byzer.run(*args, code=code, env=env)
    assert done.stdout == ""
    return said(done.stderr)


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[RayByzer]:
    """A home on a machine that no cluster has recorded."""
    byzer = RayByzer(tmp_path / "home", RAY_TMPDIR=str(tmp_path))
    yield byzer
    assert not byzer.home.exists(), "a command that was refused has left something"
    byzer.stop()


@pytest.mark.parametrize(
    ("address", "code", "reason"),
    [
        ("127.0.0.1:{free}", 1, "connection refused"),
        ("ray://127.0.0.1:{free}", 1, "connection refused"),
        ("no-such-host.invalid:6379", 1, "No Ray cluster answers at no-such-host.invalid:6379"),
        ("nonsense", 2, "is no address of a Ray cluster"),
        ("127.0.0.1:99999", 2, "is no address of a Ray cluster"),
    ],
)
@pytest.mark.parametrize("command", [("list",), ("deploy", "--model", "m", *MOCK)], ids=["list", "deploy"])
def test_an_address_that_leads_nowhere(
    stranger: RayByzer, command: tuple[str, ...], address: str, code: int, reason: str
) -> None:
    message, hint = refused(stranger, *command, "--ray_address", address.format(free=free_port()), code=code)
    assert reason in message
    assert "--ray_address embedded" in hint or "embedded uses none" in hint


def test_a_server_of_something_else_is_no_cluster(stranger: RayByzer, upstream: object) -> None:
    address = str(getattr(upstream, "url", "")).split("/")[2]
    message, _ = refused(stranger, "list", "--ray_address", address)
    assert message == f"No Ray cluster answers at {address}, which --ray_address names: what listens there is not Ray."


def test_a_cluster_without_a_server(ray_byzer: RayByzer, ray_cluster: RayCluster) -> None:
    for command in (("list",), ("stat", "--model", "m"), ("undeploy", "--model", "m"), ("query", "--model", "m")):
        message, hint = refused(ray_byzer, *command, *(("--query", "x") if command[0] == "query" else ()))
        assert message.startswith(f"No server is running on the Ray cluster at {ray_cluster.address}, so nothing is")
        assert "byzerllm deploy" in hint
    assert not ray_byzer.home.exists()


@pytest.mark.timeout(INSTALL_SECONDS + 300)
def test_another_version_of_ray_is_one_line(stranger: RayByzer, ray_cluster: RayCluster) -> None:
    install()
    command = [str(OURS / "python"), "-m", "byzerllm", "list", "--ray_address", ray_cluster.address]
    done = subprocess.run(command, env=stranger.env(), capture_output=True, text=True, timeout=120, check=False)
    message, hint = said(done.stderr)
    assert (done.returncode, done.stdout) == (1, "")
    assert message.startswith(f"The Ray cluster at {ray_cluster.address} runs Ray 2.")
    assert "but this command has Ray 2.47.1 on Python 3." in message
    assert "pip install 'ray==2." in hint


def test_another_version_of_python_is_one_line(stranger: RayByzer, ray_cluster: RayCluster) -> None:
    code = (
        "import platform, sys; platform.python_version = lambda: '3.9.1'\n"
        "from byzerllm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "list", "--ray_address", ray_cluster.address]
    done = subprocess.run(command, env=stranger.env(), capture_output=True, text=True, timeout=60, check=False)
    message, hint = said(done.stderr)
    assert (done.returncode, done.stdout) == (1, "")
    assert message.endswith("on Python 3.9.1.")
    assert f"in an environment of Python 3.{sys.version_info.minor}, or" in hint


def test_what_cannot_be_is_refused_and_nothing_is_left(
    ray_byzer: RayByzer, ray_cluster: RayCluster, tiny_gguf: Path
) -> None:
    byzer = ray_byzer
    byzer.run("server", "start")
    for flags, code, reason, hint in (
        (
            ("--resources", "unicorn=1"),
            1,
            "--resources unicorn: no node of the cluster has that",
            "ray start --address",
        ),
        (("--resources", "zephyr=2"), 1, "2 zephyr, but no node of the cluster has more than 1", "--no_wait"),
        (("--gpus_per_worker", "5"), 1, "5 GPU, but no node of the cluster has more than 2", "--no_wait"),
        (("--gpus_per_worker", "1.5"), 2, "--gpus_per_worker 1.5 must be a whole number, or a fraction below 1", ""),
        (("--resources", "zephyr=-1"), 2, "must be at least 0.0001", ""),
        (("--resources", "GPU=1"), 2, "--resources GPU=1: that is no custom resource", "--gpus_per_worker"),
        (("--resources", "zephyr"), 2, "is not of the form name=number", "--resources TPU=1"),
    ):
        failed = deploy(byzer, "bad", tiny_gguf, *flags, code=code).stderr
        assert reason in failed
        assert hint in failed
    failed = byzer.run("deploy", "--model", "bad", *MOCK, "--resources", "zephyr=1", code=2).stderr
    assert "--resources is not for saas/mock" in failed
    assert byzer.json("list") == []
    assert alive(ray_cluster) == ["byzerllm"]


def test_a_name_that_somebody_else_has(ray_byzer: RayByzer, ray_cluster: RayCluster, tiny_gguf: Path) -> None:
    byzer = ray_byzer
    ray_cluster.program("""
@ray.remote(num_cpus=0)
class Other:
    def ready(self): return True
ray.get(Other.options(name="taken", lifetime="detached").remote().ready.remote())
""")
    for attempt in (
        byzer.run("deploy", "--model", "taken", *MOCK, code=1),
        deploy(byzer, "taken", tiny_gguf, code=1),
    ):
        message, hint = said(attempt.stderr)
        assert "the cluster has an actor 'taken' in the namespace 'default' that is not of byzerllm" in message
        assert "Use another --model" in hint
    assert byzer.json("list") == []
    assert alive(ray_cluster) == ["byzerllm", "taken"], "it is not ours to end"
    byzer.run("deploy", "--model", "free", *MOCK)


def test_found_from_a_machine_that_knows_only_the_address(
    ray_byzer: RayByzer, ray_cluster: RayCluster, tmp_path: Path
) -> None:
    ray_byzer.run("deploy", "--model", "chat", *MOCK)
    other = RayByzer(tmp_path / "other", RAY_TMPDIR=str(tmp_path))
    at = ("--ray_address", ray_cluster.address)
    answer = other.run("query", "--model", "chat", "--query", "hello", *at)
    assert answer.stdout == "You said: hello\n"
    assert (other.url, other.token) == (ray_byzer.url, ray_byzer.token)
    other.run("undeploy", "--model", "chat", *at)
    assert ray_byzer.json("list") == []


@pytest.fixture(scope="module")
def locked() -> Iterator[RayCluster]:
    with RayCluster({"CPU": 2}, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN) as cluster:
        yield cluster


@pytest.mark.timeout(180)
def test_a_cluster_that_wants_a_token(locked: RayCluster, tmp_path: Path, tiny_gguf: Path, stranger: RayByzer) -> None:
    at = ("list", "--ray_address", locked.address)
    for env, reason in (
        ({}, "wants a token, and this command sends none"),
        ({"RAY_AUTH_MODE": "token"}, "No token is set here to send to"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong" * 8}, "does not know the token that is set here"),
    ):
        message, hint = refused(stranger, *at, env={"HOME": str(tmp_path), **env})
        assert reason in message
        assert "RAY_AUTH_TOKEN" in hint
    byzer = RayByzer(tmp_path / "member", **locked.environ)
    try:
        deploy(byzer, "tiny", tiny_gguf)
        byzer.run("deploy", "--model", "chat", *MOCK)
        assert byzer.run("query", "--model", "chat", "--query", "hello").stdout == "You said: hello\n"
        assert {d["state"] for d in byzer.json("list")} == {"ready"}
    finally:
        byzer.stop()


def alive(cluster: RayCluster) -> list[str]:
    """The names of all actors that have not died."""
    return [actor.name for actor in cluster.actors() if actor.state != "DEAD"]
