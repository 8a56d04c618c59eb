"""A real Ray cluster on this machine: every node is a raylet with an address and processes of its own.

    with RayCluster({"CPU": 2}, {"CPU": 2, "GPU": 1, "zephyr": 1}) as cluster:
        byzer = RayByzer(home, **cluster.environ)
        byzer.run("list", "--ray_address", "auto")
        cluster.kill_node(1)

The first node is the head. Ray believes what it is told of a node, so a ``GPU`` needs no device. No test imports Ray:
its programs run in processes of their own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from tests.harness import Byzer

Resources = Mapping[str, float]

_START_SECONDS = _PROGRAM_SECONDS = 60.0
_MARK = "TEST_RAY_NODE"
# A lost node is noticed in about two seconds, not fourteen; a slow one is given more time than that to answer.
_SYSTEM = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 4,
}
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # what else runs here must not get a test's actor killed
    "RAY_prestart_worker_first_driver": "0",  # no idle process for every CPU of every node
}

# Asks the head itself: a program that joined the cluster would be seen there, and takes three times as long.
_ACTORS = """
import json, sys
from ray._private.state import GlobalState
from ray._raylet import GcsClientOptions
from ray.core.generated.gcs_pb2 import ActorTableData
state = GlobalState()
options = GcsClientOptions.create(sys.argv[1], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
state._initialize_global_state(options)
found = [ActorTableData.FromString(data) for data in state._connect_and_get_accessor().get_actor_table(None, None)]
print(json.dumps([
    (a.name, a.ray_namespace, a.class_name, a.pid, a.address.ip_address, ActorTableData.ActorState.Name(a.state))
    for a in found
]))
"""
_PROGRAM = """
import json, sys
import ray
address, code, args = json.loads(sys.argv[1])
ray.init(address, namespace="default", log_to_driver=False, configure_logging=False)
scope = {"ray": ray, "args": args, "result": None}
exec(code, scope)
print()
print(json.dumps(scope["result"]))
"""
_CLEAR = """
import contextlib, time
from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup
for actor in ray.util.list_named_actors(all_namespaces=True):
    with contextlib.suppress(ValueError):  # it has just ended
        ray.kill(ray.get_actor(actor["name"], actor["namespace"]))
for id, group in ray.util.placement_group_table().items():
    if group["state"] != "REMOVED":
        ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(id))))
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    total, free = ray.cluster_resources(), ray.available_resources()
    if all(free.get(name) == total[name] for name in total if "memory" not in name):
        break
    time.sleep(0.05)
"""


class Actor(NamedTuple):
    """An actor as the cluster's head has it; ``node`` is an address, ``state`` is Ray's word (ALIVE, DEAD, ...)."""

    name: str
    namespace: str
    class_name: str
    pid: int
    node: str
    state: str


@dataclass(frozen=True)
class _Node:
    """What one ``ray start`` has started. Ray's processes are of its session: they overwrite their environment.
    Those in sessions of their own have the mark.
    """

    session: int
    mark: str

    def processes(self) -> list[psutil.Process]:
        """The raylet first, so that it cannot report the end of the others."""
        found = [p for p in psutil.process_iter(["name"]) if self._has(p)]
        return sorted(found, key=lambda p: p.info["name"] != "raylet")

    def _has(self, process: psutil.Process) -> bool:
        try:
            ours = os.getsid(process.pid) == self.session or process.environ().get(_MARK) == self.mark
            return ours and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):  # another user's process, or one that has just ended
            return False


class RayCluster:
    """A head and further nodes, with these resources; ``start`` (or ``with``) starts it. All that runs on it, and its
    commands, have the variables of ``settings``.
    """

    def __init__(self, *nodes: Resources, **settings: str) -> None:
        self._wanted = nodes
        self._settings = settings
        self._folder = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))  # short: the paths of sockets have a limit
        self._port = _free_port()
        self._nodes: list[_Node] = []

    def __enter__(self) -> RayCluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """HOST:PORT, as ``--ray_address`` takes it."""
        return f"{self.host(0)}:{self._port}"

    @staticmethod
    def host(index: int) -> str:
        """The address of a node. Not 127.0.0.1: Ray would take the machine's own for it."""
        return f"127.0.0.{index + 2}"

    @property
    def environ(self) -> dict[str, str]:
        """What makes a command one on a machine of the cluster, so that ``--ray_address auto`` finds it."""
        return {"RAY_TMPDIR": str(self._folder), **self._settings}

    # Nodes

    def start(self) -> None:
        """Start the nodes one after another: two at a time would take the same sockets."""
        for resources in self._wanted:
            self.add_node(resources)

    def add_node(self, resources: Resources) -> int:
        """Start another node; returns its number."""
        index = len(self._nodes)
        node = [*("--node-ip-address", self.host(index)), *_flags(resources)]
        head = ["--head", "--port", str(self._port), "--include-dashboard", "false"]
        head += ["--system-config", json.dumps(_SYSTEM)]
        joined = head if index == 0 else ["--address", self.address]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *joined, *node]
        mark = f"{self._folder}/{index}"
        with subprocess.Popen(
            command,
            env={**self._environ, _MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            self._nodes.append(_Node(process.pid, mark))
            try:
                said, _ = process.communicate(timeout=_START_SECONDS)
            finally:
                process.kill()
        assert process.returncode == 0, said.decode()
        return index

    def kill_node(self, index: int) -> None:
        """End everything that runs on a node at once, as when the machine is lost."""
        _kill(self._nodes[index])

    def processes(self, index: int) -> list[psutil.Process]:
        """All that runs on a node."""
        return self._nodes[index].processes()

    def kill(self) -> None:
        """End the whole cluster as a power cut would: its address file stays."""
        _kill(*self._nodes)
        self._nodes.clear()

    def restart(self) -> None:
        """Another cluster with the first nodes, at the same address."""
        self.kill()
        shutil.rmtree(self._folder / "ray")
        self.start()

    def stop(self) -> None:
        """Leave neither a process nor a file."""
        self.kill()
        shutil.rmtree(self._folder)

    # What runs on it

    def actors(self, namespace: str | None = None) -> list[Actor]:
        """All that there are or were, by name; in one namespace if it is given."""
        found = [Actor(*fields) for fields in self._python(_ACTORS, self.address)]
        return sorted(a for a in found if namespace in (None, a.namespace))

    def program(self, code: str, *args: Any) -> Any:
        """Run a program of somebody else's on the cluster, in the namespace ``default``: it has ``ray``, connected, and
        ``args``; what it puts into ``result`` is returned.
        """
        return self._python(_PROGRAM, json.dumps([self.address, code, args]))

    def clear(self) -> None:
        """Kill every named actor and give back what was reserved, so that the next test finds an empty cluster."""
        self.program(_CLEAR)

    def _python(self, program: str, argument: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", program, argument],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROGRAM_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    @property
    def _environ(self) -> dict[str, str]:
        return {**os.environ, **_SETTINGS, **self.environ}


class RayByzer(Byzer):
    """A ``$BYZERLLM_HOME`` whose server runs on a cluster. ``stop`` ends its commands; the cluster, the server."""

    @property
    def server(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "ray" / "server.json").read_text())
        return found

    def log_tail(self, lines: int = 60) -> str:
        return Byzer(self.home / "ray").log_tail(lines)


def _kill(*nodes: _Node) -> None:
    """End all processes of the nodes: repeated, since one that is killed may be starting another."""
    while left := [process for node in nodes for process in node.processes()]:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=0.1)


def _flags(resources: Resources) -> list[str]:
    custom = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    return [
        *("--num-cpus", f"{resources.get('CPU', 0):g}", "--num-gpus", f"{resources.get('GPU', 0):g}"),
        *("--resources", json.dumps(custom), "--object-store-memory", "80000000"),
        *("--include-log-monitor", "false", "--disable-usage-stats"),
        *("--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"),
    ]


def _free_port() -> int:
    """Not one that the system gives to connections: it must still be free when the cluster is started again."""
    while True:
        port = random.randrange(10_100, 20_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
