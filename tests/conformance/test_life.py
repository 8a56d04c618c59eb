"""The life of an instance, by the real command and over sockets: on this machine alone, and on three nodes of Ray.

On Ray the engines need a resource that the head has not, so that they never run where the server does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest
from tests import engine_programs
from tests.fakes import HANG, FakeUpstream, Reply
from tests.fixtures_models import SAY
from tests.harness import Answer, Byzer, eventually
from tests.ray_cluster import RayByzer, RayCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(240)

CHAT = "/v1/chat/completions"
OURS = ("byzerllm.engines.host", "byzerllm-guardian")  # in the command line of all that belongs to an engine
MOCK = ("--pretrained_model_type", "saas/mock")
LLAMA = ("--pretrained_model_type", "custom/auto", "--infer_backend", "llama_cpp")
ROWS = {
    *("name", "pretrained_model_type", "infer_backend", "task", "model", "state", "reason"),
    *("num_workers", "ready_workers"),
    *("slots_free", "slots_total", "queued", "total_requests", "load_balance", "created_at", "spec"),
}
STAT = {
    *("total_workers", "busy_workers", "idle_workers", "load_balance_strategy", "total_requests", "state"),
    *("worker_max_concurrency", "workers_last_work_time"),
}
DETAIL = STAT | {
    *("deployment_state", "reason", "worker_state", "queue", "requests", "errors", "tokens", "latency_s"),
    *("first_byte_s", "processes"),
}
RESERVED = 'result = [g["name"] for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]'
PROCESS = {"id", "index", "phase", "pid", "gpus", "node", "restarts", "error", "waiting", "doing"}


@dataclass(frozen=True)
class Life:
    """A home with its server, on a cluster or not."""

    byzer: Byzer
    cluster: RayCluster | None = None

    def deploy(self, name: str, *flags: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.byzer.run("deploy", "--model", name, *flags, **options)

    def private(self, model: Path, *more: str | Path) -> list[str | Path]:
        """The flags of a private instance."""
        placed = ("--resources", "zephyr=0.1") if self.cluster else ()
        return [*LLAMA, "--model_path", model, *placed, "--infer_params", "n_threads=1", "verbose=false", *more]

    def stat(self, name: str) -> Any:
        return self.byzer.json("stat", "--model", name)

    def workers(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.byzer.json("stat", "--model", name, "--detail")["processes"]
        return found

    def pids(self, name: str) -> list[int]:
        return [worker["pid"] for worker in self.workers(name)]

    def names(self) -> list[str]:
        return [row["name"] for row in self.byzer.json("list")]

    def is_ready(self, name: str) -> bool:
        return [row["state"] for row in self.byzer.json("list") if row["name"] == name] == ["ready"]

    def ask(self, name: str, **fields: Any) -> Answer:
        body = {"model": name, "messages": [{"role": "user", "content": "hello"}], **fields}
        return self.byzer.http("POST", CHAT, body, timeout=60)

    def engines(self) -> set[int]:
        """The processes of all engines, wherever they run."""
        cluster = self.cluster
        found = [p for n in range(3) for p in cluster.processes(n)] if cluster else self.byzer.processes()
        return {p.pid for p in found if any(word in line for word in OURS for line in _command(p))}

    def kept(self) -> set[str]:
        """What a cluster holds for instances, by name."""
        if self.cluster is None:
            return set()
        actors = {a.name for a in self.cluster.actors() if a.name and a.state != "DEAD"} - {"byzerllm"}
        return actors | set(self.cluster.program(RESERVED))


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


@pytest.fixture(scope="module", params=["embedded", "ray"])
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    home = tmp_path_factory.mktemp("life") / "home"
    if request.param == "embedded":
        byzer = Byzer(home)
        yield Life(byzer)
        byzer.stop()
    else:
        cluster: RayCluster = request.getfixturevalue("ray_cluster")
        byzer = RayByzer(home, **cluster.environ)
        yield Life(byzer, cluster)
        byzer.stop()
        cluster.clear()


@pytest.fixture(autouse=True)
def _nothing_is_left(life: Life) -> Iterator[None]:
    """What a test has deployed leaves no process when it is undeployed, and nothing on the cluster."""
    life.byzer.run("server", "start")
    yield
    for name in life.names():
        life.byzer.run("undeploy", "--model", name, "--force")
    eventually(lambda: not life.engines(), 20, "the end of all engines")
    eventually(lambda: not life.kept(), 20, "a cluster that holds nothing")


def text(answer: Answer) -> str:
    """What the model said, or the error in place of it."""
    if answer.status != 200:
        return f"{answer.status} {answer.body.decode()}"
    return str(answer.json()["choices"][0]["message"]["content"])


@contextmanager
def asking(ask: Callable[[], Any], askers: int = 2) -> Iterator[list[Any]]:
    """What comes of asking again and again meanwhile; it has come at least once more after the block."""
    results: list[Any] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            results.append(ask())

    threads = [threading.Thread(target=keep_asking) for _ in range(askers)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: results, 30, "a first result")
        yield results
        so_far = len(results)
        eventually(lambda: len(results) > so_far + askers, 60, "results after what was done")
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def streaming(life: Life, name: str, streams: int) -> Iterator[list[Answer]]:
    """Long answers that have begun when the block is entered, and have ended after it."""
    answers: list[Answer] = []
    begun = threading.Semaphore(0)
    message = {"role": "user", "content": "hello"}
    body = json.dumps({"model": name, "messages": [message], "stream": True, "max_tokens": 200})
    address, headers = urlsplit(life.byzer.url), {"Authorization": f"Bearer {life.byzer.token}"}

    def read() -> None:
        with closing(HTTPConnection(address.hostname or "", address.port, timeout=60)) as connection:
            connection.request("POST", CHAT, body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            first = answer.read1()
            begun.release()
            answers.append(Answer(answer.status, {}, first + answer.read()))

    threads = [threading.Thread(target=read) for _ in range(streams)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            assert begun.acquire(timeout=60)
        yield answers
    finally:
        for thread in threads:
            thread.join()


def is_whole(stream: Answer) -> bool:
    return stream.status == 200 and stream.body.rstrip().endswith(b"data: [DONE]")


def test_a_saas_instance(life: Life) -> None:
    deploy = (*MOCK, "--num_workers", "2")
    assert life.deploy("mock", *deploy).stdout == "Model mock deployed successfully\n"
    assert life.deploy("mock", *deploy).stdout == "Model mock already deployed\n"
    refused = life.deploy("mock", *deploy, "--worker_concurrency", "3", code=1)
    assert "--replace" in refused.stderr
    assert life.stat("mock").keys() == STAT
    assert [row.keys() for row in life.byzer.json("list")] == [ROWS]
    assert text(life.ask("mock")) == "You said: hello"
    assert is_whole(life.ask("mock", stream=True))
    assert life.byzer.run("query", "--model", "mock", "--query", "hi").stdout == "You said: hi\n"
    assert "no engine log" in life.byzer.run("logs", "--model", "mock", code=1).stderr
    life.byzer.run("scale", "--model", "mock", "--num_workers", "3")
    assert life.stat("mock")["state"] == [1, 1, 1]
    life.deploy("mock", *deploy, "--worker_concurrency", "3", "--replace")
    assert life.stat("mock")["state"] == [3, 3]
    if life.cluster:
        assert life.kept() == {"mock", "byzerllm:mock"}
    assert life.byzer.run("undeploy", "--model", "mock").stdout == "Model mock undeployed successfully\n"
    assert life.ask("mock").status == 404
    assert life.names() == []


def test_a_private_instance(life: Life, tiny_gguf: Path) -> None:
    flags = life.private(tiny_gguf)
    done = life.deploy("tiny", *flags)
    assert done.stdout == "Model tiny deployed successfully\n"
    assert "worker 0 ready" in done.stderr
    assert life.deploy("tiny", *flags).stdout == "Model tiny already deployed\n"
    assert "--replace" in life.deploy("tiny", *flags, "--worker_concurrency", "3", code=1).stderr
    assert life.byzer.json("stat", "--model", "tiny", "--detail").keys() == DETAIL
    [worker] = life.workers("tiny")
    assert worker.keys() == PROCESS
    assert bool(worker["node"]) == bool(life.cluster)
    assert text(life.ask("tiny")) == SAY
    assert is_whole(life.ask("tiny", stream=True))
    assert "serving tiny" in life.byzer.run("logs", "--model", "tiny").stdout
    with asking(lambda: text(life.ask("tiny"))) as answers:
        life.deploy("tiny", *flags, "--worker_concurrency", "3", "--replace")
    assert set(answers) == {SAY}
    assert worker["pid"] not in life.pids("tiny")
    assert life.stat("tiny")["state"] == [3]


def test_scaling_and_undeploying_let_running_streams_end(life: Life, loop_gguf: Path) -> None:
    life.deploy("long", *life.private(loop_gguf, "n_ctx=1024"))
    first = life.pids("long")
    with streaming(life, "long", 1) as before:
        life.byzer.run("scale", "--model", "long", "--num_workers", "2")
    assert life.pids("long")[:1] == first
    with streaming(life, "long", 2) as meanwhile:
        life.byzer.run("scale", "--model", "long", "--num_workers", "1")
    assert life.pids("long") == first
    with streaming(life, "long", 1) as last:
        life.byzer.run("undeploy", "--model", "long")
    answers = [*before, *meanwhile, *last]
    assert [is_whole(a) for a in answers] == [True] * 4, [a.body[-300:] for a in answers]


def test_a_killed_engine_comes_back_and_no_request_fails(life: Life, tiny_gguf: Path) -> None:
    life.deploy("hurt", *life.private(tiny_gguf), "--num_workers", "2")
    first, second = life.pids("hurt")
    with asking(lambda: text(life.ask("hurt"))) as answers:
        os.kill(first, signal.SIGKILL)
        eventually(lambda: life.is_ready("hurt") and first not in life.pids("hurt"), 30, "another engine")
    assert set(answers) == {SAY}
    assert [worker["restarts"] for worker in life.workers("hurt")] == [1, 0]
    assert second in life.pids("hurt")


def test_a_killed_server_comes_back_to_the_same_engines(life: Life, tiny_gguf: Path, upstream: FakeUpstream) -> None:
    byzer = life.byzer
    params = (f"saas.base_url={upstream.url}", "saas.model=m", "saas.api_key=env:A_KEY_OF_THE_COMMAND")
    saas = ("--pretrained_model_type", "saas/openai", "--no_verify", "--infer_params", *params)
    life.deploy("vendor", *saas, env={"A_KEY_OF_THE_COMMAND": "sk-of-the-command"})
    life.deploy("same", *life.private(tiny_gguf), "--num_workers", "2")
    engines, server = life.pids("same"), byzer.server

    def answered() -> str | None:
        try:
            return text(life.ask("same"))
        except (OSError, HTTPException):  # in flight, or made while there is no server
            return None

    with asking(answered) as answers:
        os.kill(byzer.pid, signal.SIGKILL)
        eventually(lambda: byzer.pid != server["pid"] and answers[-1], 60, "another server that answers")
    assert set(answers) <= {SAY, None}
    assert (byzer.url, byzer.token) == (server["url"], server["token"])
    assert life.pids("same") == engines
    life.ask("vendor")
    assert upstream.requests[-1].headers["authorization"] == "Bearer sk-of-the-command"


def test_a_server_and_an_engine_that_die_together(life: Life, tiny_gguf: Path) -> None:
    life.deploy("both", *life.private(tiny_gguf), "--num_workers", "2")
    first, second = life.pids("both")
    for pid in (first, life.byzer.pid):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: life.is_ready("both") and first not in life.pids("both"), 60, "another engine")
    assert second in life.pids("both")
    assert [worker["error"] for worker in life.workers("both")] == ["", ""]
    assert text(life.ask("both")) == SAY


def test_stopped_and_brought_up_again(life: Life, tiny_gguf: Path) -> None:
    life.deploy("mock", *MOCK, "--num_workers", "3")
    life.deploy("tiny", *life.private(tiny_gguf))
    before = life.pids("tiny")
    assert life.byzer.run("server", "stop").stdout == "Server stopped\n"
    assert life.engines() == set()
    assert life.kept() == set()
    assert "no server" in life.byzer.run("stat", "--model", "tiny", code=1).stderr.lower()
    restored = life.byzer.run("up").stdout.splitlines()
    assert sorted(restored) == ["Model mock deployed successfully", "Model tiny deployed successfully"]
    assert life.pids("tiny") != before
    assert life.stat("mock")["total_workers"] == 3
    assert text(life.ask("tiny")) == SAY


def test_a_deploy_that_does_not_wait(life: Life, tiny_gguf: Path) -> None:
    done = life.deploy("later", *life.private(tiny_gguf), "--no_wait")
    assert done.stdout == "Model later is being deployed\n"
    eventually(lambda: life.is_ready("later"), 30)
    assert text(life.ask("later")) == SAY


@pytest.fixture
def slow_engine(life: Life) -> Iterator[None]:
    """What is deployed never becomes ready."""
    folder = engine_programs.install(life.byzer.home, "llama_cpp", engine_programs.SLOW)
    yield
    shutil.rmtree(folder)


@pytest.mark.usefixtures("slow_engine")
@pytest.mark.parametrize("kind", ["saas", "private"])
def test_an_interrupted_deploy_leaves_nothing(life: Life, tiny_gguf: Path, upstream: FakeUpstream, kind: str) -> None:
    upstream.default = Reply([HANG])
    params = (f"saas.base_url={upstream.url}", "saas.api_key=k", "saas.model=m")
    saas = ("--pretrained_model_type", "saas/openai", "--infer_params", *params)
    flags = saas if kind == "saas" else (*life.private(tiny_gguf), "--num_workers", "4")
    with life.byzer.background("deploy", "--model", "stopped", *flags) as command:
        eventually(lambda: upstream.requests if kind == "saas" else life.engines(), 30, "a deploy in its midst")
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=30)
    assert command.returncode == 130
    assert "Traceback" not in said
    eventually(lambda: life.names() == [], 20, "an instance that is gone")
