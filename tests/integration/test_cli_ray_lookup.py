"""How the command line finds and starts the server of a Ray cluster: the real client, a fake of what it asks of Ray."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tests.harness import free_port
from tests.integration.scripted_server import ScriptedServer

from byzerllm.client import ray_server
from byzerllm.client.launch import connect, ensure_server, running_server
from byzerllm.errors import Conflict, EngineMissing, InternalError, ServerUnavailable
from byzerllm.runtime.placement import ActorGone
from byzerllm.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ADDRESS = "10.9.9.9:6379"  # it is never connected to


class FakeActor:
    """A server actor whose ``describe`` gives each of these in turn, the last one for ever; an error is raised."""

    def __init__(self, *descriptions: Any) -> None:
        self.descriptions = list(descriptions)
        self.killed = False

    def ask(self, method: str, *args: Any, timeout: float) -> Any:
        assert method == "describe"
        found = self.descriptions.pop(0) if len(self.descriptions) > 1 else self.descriptions[0]
        if isinstance(found, Exception):
            raise found
        return found

    def kill(self) -> None:
        self.killed = True


class FakeCluster:
    """A cluster with at most one server; ``next_server`` is what ``create`` makes."""

    def __init__(self) -> None:
        self.server: FakeActor | None = None
        self.next_server: FakeActor | None = None
        self.created: list[dict[str, Any]] = []
        self.lookups = 0
        self.connections = 0

    def connect(self, address: str) -> FakeCluster:
        assert address == ADDRESS
        self.connections += 1
        return self

    def disconnect(self) -> None:
        self.connections -= 1

    def find(self, name: str) -> FakeActor | None:
        assert name == "byzerllm"
        self.lookups += 1
        return self.server if self.server is None or not self.server.killed else None

    def nodes(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(id="n1", host="10.9.9.8", head=False),
            SimpleNamespace(id="n2", host="10.9.9.9", head=True),
        ]

    def create(self, path: str, name: str, options: dict[str, Any], **placed: Any) -> FakeActor:
        self.created.append({"path": path, "name": name, **options, **placed})
        if self.next_server is None:
            raise Conflict("the name is taken")
        self.server = self.next_server
        return self.server


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    cluster = FakeCluster()
    fake: Any = ModuleType("byzerllm.runtime.ray")
    fake.SERVER = "byzerllm"
    fake.Cluster = SimpleNamespace(connect=cluster.connect)
    monkeypatch.setitem(sys.modules, "byzerllm.runtime.ray", fake)
    monkeypatch.setattr(ray_server, "POLL", 0.001)
    monkeypatch.setattr(ray_server, "REACH_LIMIT", 0.5)
    yield cluster
    assert cluster.connections == 0


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    with server:
        yield server


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("BYZERLLM_HOME", str(tmp_path))
    return Settings.read().on_ray(ADDRESS)


def described(server: ScriptedServer, **other: Any) -> dict[str, Any]:
    return {**server.record(), "runtime": "ray", "supervisor_pid": 0, "ray_address": ADDRESS, **other}


def test_a_server_is_looked_up_once_and_kept(cluster: FakeCluster, server: ScriptedServer, settings: Settings) -> None:
    cluster.server = FakeActor(described(server))
    for _ in range(3):
        assert connect(settings).info.url == server.url
    assert (cluster.lookups, cluster.created) == (1, [])
    kept = json.loads(settings.server_file.read_text())
    assert (kept["url"], kept["token"], kept["ray_address"]) == (server.url, "t0ken", ADDRESS)
    assert settings.server_file.stat().st_mode & 0o777 == 0o600
    assert not (settings.home.parent / "server.json").exists()


def test_a_server_that_moved_is_looked_up_again(
    cluster: FakeCluster, server: ScriptedServer, settings: Settings
) -> None:
    before = ScriptedServer()
    with before:
        cluster.server = FakeActor(described(before), described(server))
        assert connect(settings).info.url == before.url
    assert connect(settings).info.url == server.url
    assert connect(settings).info.url == server.url
    assert cluster.lookups == 2


def test_another_clusters_record_is_not_used(cluster: FakeCluster, server: ScriptedServer, settings: Settings) -> None:
    other = ScriptedServer()
    with other:
        cluster.server = FakeActor(described(server))
        settings.home.mkdir()
        other.announce(settings.home, ray_address="10.9.9.9:6380")
        assert connect(settings).info.url == server.url
        assert other.requests == []


def test_the_own_file_of_a_server_here_stays(cluster: FakeCluster, server: ScriptedServer, settings: Settings) -> None:
    """Also when the command names the cluster otherwise than the server does, or means another cluster."""
    settings.home.mkdir()
    server.announce(settings.home, home=str(settings.home), ray_address="127.0.0.1:1")
    before = settings.server_file.read_bytes()
    cluster.server = FakeActor(described(server))
    assert connect(settings).info.url == server.url
    assert settings.server_file.read_bytes() == before


def test_no_server_is_an_error_for_who_looks_and_nothing_is_left(cluster: FakeCluster, settings: Settings) -> None:
    assert running_server(settings) is None
    with pytest.raises(ServerUnavailable, match=f"No server is running on the Ray cluster at {ADDRESS}") as caught:
        connect(settings)
    assert "byzerllm deploy" in (caught.value.hint or "")
    assert cluster.created == []
    assert not settings.home.exists()


def test_a_server_is_created_on_the_head_node(
    cluster: FakeCluster, server: ScriptedServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.next_server = FakeActor(described(server))
    notes: list[str] = []
    assert ensure_server(settings, notes.append).url == server.url
    assert notes == [f"Starting the server on the Ray cluster at {ADDRESS} ..."]
    [created] = cluster.created
    assert (created["path"], created["name"]) == ("byzerllm.gateway.ray_server:RayServer", "byzerllm")
    assert (created["node"], created["restarts"]) == ("n2", True)
    assert (created["home"], created["port"]) == (str(settings.home), None)
    assert ensure_server(settings, notes.append).url == server.url
    assert (len(cluster.created), len(notes)) == (1, 1)


def test_only_what_was_set_is_passed_to_another_machine(
    cluster: FakeCluster, server: ScriptedServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BYZERLLM_HOME")
    monkeypatch.setenv("BYZERLLM_PORT", str(settings.port))
    cluster.next_server = FakeActor(described(server))
    ensure_server(settings, lambda text: None)
    assert (cluster.created[0]["home"], cluster.created[0]["port"]) == (None, settings.port)


def test_of_two_commands_the_slower_one_takes_the_others_server(
    cluster: FakeCluster, server: ScriptedServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster = FakeActor(described(server))

    def create(*args: Any, **options: Any) -> FakeActor:
        cluster.server = faster
        raise Conflict("the name is taken")

    monkeypatch.setattr(cluster, "create", create)
    assert ensure_server(settings, lambda text: None).url == server.url
    assert not faster.killed


def test_a_server_that_is_ending_is_waited_for(
    cluster: FakeCluster, server: ScriptedServer, settings: Settings
) -> None:
    cluster.server = FakeActor(ActorGone("it ended"))
    cluster.next_server = FakeActor(described(server))
    assert ensure_server(settings, lambda text: None).url == server.url
    assert len(cluster.created) == 1


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (InternalError("port 80 is taken", hint="Set BYZERLLM_PORT."), "port 80 is taken"),
        (ActorGone("the actor died: no module named byzerllm"), "no module named byzerllm"),
        (TimeoutError(), "not ready after 30 s"),
    ],
)
def test_a_server_that_does_not_start_is_removed(
    cluster: FakeCluster, settings: Settings, failure: Exception, said: str
) -> None:
    cluster.next_server = FakeActor(failure)
    with pytest.raises(ServerUnavailable, match=f"could not be started on the Ray cluster.*{said}") as caught:
        ensure_server(settings, lambda text: None)
    assert caught.value.hint == getattr(failure, "hint", None)
    assert cluster.next_server.killed
    assert not settings.home.exists()


def test_a_server_that_hangs_is_named_and_stays(cluster: FakeCluster, settings: Settings) -> None:
    cluster.server = FakeActor(TimeoutError())
    for attempt in (running_server, connect, lambda s: ensure_server(s, lambda text: None)):
        with pytest.raises(ServerUnavailable, match="has not answered for 15 s"):
            attempt(settings)
    assert not cluster.server.killed
    assert cluster.created == []


def test_a_server_that_stops_answering_before_it_is_gone_is_waited_for(
    cluster: FakeCluster, server: ScriptedServer, settings: Settings
) -> None:
    ending = described(server, url=f"http://127.0.0.1:{free_port()}")
    cluster.server = FakeActor(ending, ActorGone("it ended"))
    assert running_server(settings) is None
    cluster.server = FakeActor(ending, described(server))
    assert connect(settings).info.url == server.url


def test_a_server_behind_a_firewall_is_named(cluster: FakeCluster, server: ScriptedServer, settings: Settings) -> None:
    cluster.server = FakeActor(described(server, url=f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(ServerUnavailable, match=r"does not answer at http://127\.0\.0\.1") as caught:
        connect(settings)
    assert "open that port" in (caught.value.hint or "")


def test_without_ray_installed_the_hint_installs_it(
    cluster: FakeCluster, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str, path: object, target: object = None) -> None:
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")

    monkeypatch.delitem(sys.modules, "byzerllm.runtime.ray")
    for name in [n for n in sys.modules if n.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=find), *sys.meta_path])
    with pytest.raises(EngineMissing, match=f"Ray is not installed here.*{ADDRESS}") as caught:
        connect(settings)
    assert "pip install 'byzerllm[ray]'" in (caught.value.hint or "")


def test_a_server_of_another_version_is_one_line(cluster: FakeCluster, settings: Settings) -> None:
    cluster.server = FakeActor({"url": "http://127.0.0.1:1"})
    with pytest.raises(ServerUnavailable, match="another version of byzerllm"):
        connect(settings)
