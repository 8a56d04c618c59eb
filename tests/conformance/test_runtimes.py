"""What every runtime promises, told by a small program in place of an engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import msgspec
import psutil
import pytest
from tests import engine_programs
from tests.harness import eventually

from byzerllm.engines.base import Launch
from byzerllm.errors import DeploymentFailed, NotFound
from byzerllm.runtime.base import EngineProcess, Exit, Need
from byzerllm.runtime.embedded import EmbeddedRuntime
from byzerllm.runtime.local import LocalProcesses
from byzerllm.runtime.on_ray import RayRuntime
from byzerllm.spec import DeploymentSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from blockbuster import BlockBuster
    from tests.ray_cluster import RayCluster

    from byzerllm.runtime.base import Runtime
    from byzerllm.runtime.ray import Cluster

# Says what it is asked to say, then waits for a signal.
PROGRAM = "import os, signal, sys\nprint(eval(sys.argv[1]), flush=True)\nsignal.pause()"
# Neither it nor its child ends on SIGTERM.
STUBBORN = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    print("child", child, flush=True)
while True:
    signal.pause()
"""
# A server that starts an engine and is gone.
EARLIER_SERVER = """
import asyncio, sys, msgspec
from pathlib import Path
from byzerllm.engines.base import Launch
from byzerllm.runtime.base import Need
logs, address, program = sys.argv[1:]
if address:
    from byzerllm.runtime.on_ray import RayRuntime
    from byzerllm.runtime.ray import Cluster
    runtime = RayRuntime(Cluster.connect(address), logs)
else:
    from byzerllm.runtime.embedded import EmbeddedRuntime
    runtime = EmbeddedRuntime(Path(logs))
launch = Launch(argv=(sys.executable, "-c", program, "'hello'"), env={}, ready_path="", ready_body=b"")
started = runtime.start("w", Need(), lambda host, port: launch, token="t", waiting=str)
print(msgspec.json.encode(asyncio.run(started)).decode(), flush=True)
"""
NEED = Need()
CLUSTER_INCLUDED = 180.0  # seconds for a test that may have to start one


def launch(program: str = PROGRAM, *args: str, **env: str) -> Launch:
    return Launch(argv=(sys.executable, "-c", program, *args), env=env, ready_path="", ready_body=b"")


async def begin(runtime: Runtime, what: Launch, worker: str = "w", need: Need = NEED) -> EngineProcess:
    return await runtime.start(worker, need, lambda host, port: what, token="t", waiting=lambda why: None)


@dataclass(frozen=True)
class Kind:
    """A runtime, and where one of them differs from the other."""

    make: Callable[[], Runtime]
    address: str = ""  # of its cluster
    keeps_last_words: bool = True  # of what it has stopped: on Ray nobody is left who could tell
    passes_environment: bool = True  # the server's own: on Ray it is the node's


class Story:
    """A runtime, and all that it started, which is gone at the end. Its loop runs only while the test waits in it."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._loop = asyncio.new_event_loop()
        self.runtime = kind.make()
        self.next_server = kind.make()  # after the server's own restart
        self.started: list[EngineProcess] = []

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    def eventually(self, predicate: Callable[[], Any], what: str) -> Any:
        def look() -> Any:
            self.wait(asyncio.sleep(0.01))  # what watches the processes goes on
            return predicate()

        return eventually(look, 20, what)

    def start(self, what: Launch, worker: str = "w", need: Need = NEED) -> EngineProcess:
        process: EngineProcess = self.wait(begin(self.runtime, what, worker, need))
        self.started.append(process)
        return process

    def adopts(self, process: EngineProcess) -> bool:
        """Whether the server after the next takes the process back."""
        adopted: bool = self.wait(self.next_server.adopt(process, NEED))
        return adopted

    def log(self, worker: str = "w", tail: int = 100) -> bytes:
        async def read() -> bytes:
            return b"".join([part async for part in self.runtime.logs(worker, tail=tail, follow=False)])

        text: bytes = self.wait(read())
        return text

    def said(self, text: str) -> None:
        self.eventually(lambda: text.encode() in self.log(), f"{text!r} in the log")

    def ended(self, process: EngineProcess) -> Exit:
        ended: Exit = self.eventually(lambda: self.runtime.poll(process), "the end of the process")
        return ended

    def was_stopped(self, process: EngineProcess, code: int | None, words: str) -> bool:
        """Whether the process is gone, and its end is known as far as the runtime keeps it."""
        ended = self.ended(process)
        if self.kind.keeps_last_words:
            assert ended == Exit(code, words)
        else:
            assert ended == Exit(code, words) or (ended.code is None and ended.lost)
        return not _runs(process.pid)

    def close(self) -> None:
        for process in self.started:
            self.wait(self.runtime.stop(process, grace=0))
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self.wait(asyncio.wait(left))
        self.wait(self._loop.shutdown_asyncgens())
        self.wait(self._loop.shutdown_default_executor())
        self._loop.close()


@pytest.fixture(scope="module")
def cluster(ray_cluster: RayCluster) -> Iterator[Cluster]:
    """This process as one of the cluster's own programs, and nothing of that afterwards."""
    from byzerllm.runtime.ray import Cluster  # takes a second to load

    with patch.dict(os.environ):  # Ray adds to it
        cluster = Cluster.connect(ray_cluster.address)
        yield cluster
        cluster.disconnect()
    ray_cluster.clear()


@pytest.fixture
def embedded(tmp_path: Path) -> Kind:
    return Kind(lambda: EmbeddedRuntime(tmp_path / "logs"))


@pytest.fixture
def ray(tmp_path: Path, cluster: Cluster) -> Kind:
    return Kind(lambda: RayRuntime(cluster, str(tmp_path / "logs")), cluster.address, False, False)


@pytest.fixture(params=["embedded", pytest.param("ray", marks=pytest.mark.timeout(CLUSTER_INCLUDED))])
def story(request: pytest.FixtureRequest) -> Iterator[Story]:
    story = Story(request.getfixturevalue(request.param))
    yield story
    story.close()


@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_it_says_what_memory_is_free_where_workers_can_be_placed(story: Story, gpus: float) -> None:
    spec = DeploymentSpec(name="w", num_workers=2, gpus_per_worker=gpus)
    sites = story.wait(story.runtime.memory(spec, on_gpu=gpus > 0))
    for site in sites:
        assert 0 < site.room.free <= site.room.total
        assert site.places > site.own == 0
        assert all(0 <= gpu.free <= gpu.total for gpu in site.gpus or ())


def test_workers_go_where_they_are_preferred_and_are_counted_there(story: Story) -> None:
    spec = DeploymentSpec(name="w", num_workers=3)
    sites = story.wait(story.runtime.memory(spec, on_gpu=False))
    story.runtime.prefer("w", [site.node for site in reversed(sites)])
    for number, site in enumerate(reversed(sites)):
        process = story.start(launch(PROGRAM, "'hello'"), f"w.1.{number}", Need(cpus=0.01))
        assert process.node in ("", site.node)
    assert [site.own for site in story.wait(story.runtime.memory(spec, on_gpu=False))] == [1] * len(sites)
    story.wait(story.runtime.stop(story.started[0], grace=10))
    assert sum(site.own for site in story.wait(story.runtime.memory(spec, on_gpu=False))) == len(sites) - 1


def test_a_process_is_started_watched_taken_back_and_stopped(story: Story) -> None:
    process = story.start(launch(PROGRAM, "'hello'"))
    story.said("hello")
    assert story.runtime.poll(process) is None
    assert story.adopts(process)
    assert story.next_server.poll(process) is None
    story.wait(story.next_server.stop(process, grace=10))
    assert not story.adopts(process)
    assert story.was_stopped(process, -signal.SIGTERM, "hello")


def test_every_call_can_be_repeated(story: Story) -> None:
    process = story.start(launch(PROGRAM, "'hello'"))
    story.said("hello")
    for _ in range(2):
        story.wait(story.runtime.stop(process, grace=10))
        assert story.was_stopped(process, -signal.SIGTERM, "hello")
    assert not story.wait(story.runtime.adopt(process, NEED))


def test_a_process_of_an_earlier_server_is_taken_back_and_stopped(story: Story, tmp_path: Path) -> None:
    server = [sys.executable, "-c", EARLIER_SERVER, str(tmp_path / "logs"), story.kind.address, PROGRAM]
    done = subprocess.run(server, check=True, capture_output=True, timeout=30)
    process = msgspec.json.decode(done.stdout, type=EngineProcess)
    story.started.append(process)
    assert story.wait(story.runtime.adopt(process, NEED))
    story.said("hello")
    story.wait(story.runtime.stop(process, grace=10))
    assert story.was_stopped(process, None, "hello")


def test_a_killed_process_is_told_with_its_signal_and_last_words(story: Story) -> None:
    process = story.start(launch(PROGRAM, "'one\\ntwo'"))
    story.said("two")
    os.kill(process.pid, signal.SIGKILL)
    assert story.ended(process) == Exit(-signal.SIGKILL, "one\ntwo")


def test_last_words_are_of_this_start_only(story: Story) -> None:
    assert story.ended(story.start(launch("raise SystemExit('first')"))) == Exit(1, "first")
    assert story.ended(story.start(launch("raise SystemExit('second')"))) == Exit(1, "second")
    assert b"first" in story.log()


def test_another_process_of_the_same_number_is_not_taken_for_the_engine(story: Story) -> None:
    process = story.start(launch(PROGRAM, "'hello'"))
    story.said("hello")
    other = msgspec.structs.replace(process, started=process.started - 100)
    assert not story.adopts(other)
    assert story.next_server.poll(other) is not None
    story.wait(story.next_server.stop(other, grace=0))
    story.wait(story.runtime.stop(other, grace=0))
    assert story.adopts(process)
    assert story.runtime.poll(process) is None


def test_what_does_not_end_is_killed_with_its_children(story: Story) -> None:
    process = story.start(launch(STUBBORN))
    story.said("child")
    child = int(story.log().split()[-1])
    story.wait(story.runtime.stop(process, grace=0.2))
    assert story.was_stopped(process, -signal.SIGKILL, f"child {child}")
    eventually(lambda: not _runs(child), what="the end of the child")


@pytest.mark.parametrize("grace", [0, 10])
def test_children_that_clean_up_may_do_so(story: Story, tmp_path: Path, grace: float) -> None:
    (tmp_path / "file").touch()
    process = story.start(launch(engine_programs.CLEANING, str(tmp_path / "file")))
    story.said("watching")
    story.wait(story.runtime.stop(process, grace=grace))
    assert not (tmp_path / "file").exists()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_program_that_cannot_be_run_says_so(story: Story) -> None:
    with pytest.raises(DeploymentFailed, match="no-such-program"):
        story.start(replaced(launch(), argv=("/no-such-program",)))


def test_a_start_that_is_given_up_leaves_nothing(story: Story, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")

    async def give_up() -> None:
        starting = asyncio.ensure_future(begin(story.runtime, launch(PROGRAM, repr(mark))))
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    story.wait(give_up())

    def left() -> list[psutil.Process]:
        return [p for p in psutil.process_iter(["cmdline"]) if repr(mark) in (p.info["cmdline"] or ())]

    story.eventually(lambda: not left(), "the end of what was started")


def test_the_environment_is_the_servers_without_its_secrets(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYZERLLM_API_KEY", "secret")
    monkeypatch.setenv("BYZERLLM_LISTEN_FD", "7")
    monkeypatch.setenv("OF_THE_USER", "kept")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    process = story.start(launch(PROGRAM, "__import__('json').dumps(dict(os.environ))", ADDED="yes"))
    story.said("}")
    seen = json.loads(story.log(tail=1))
    assert not {"BYZERLLM_API_KEY", "BYZERLLM_LISTEN_FD"} & seen.keys()
    assert (seen["ADDED"], seen["CUDA_VISIBLE_DEVICES"]) == ("yes", "")
    assert seen.get("OF_THE_USER") == ("kept" if story.kind.passes_environment else None)
    assert process.gpus == ()


def test_a_process_has_no_input_no_terminal_and_no_file_of_ours(story: Story, tmp_path: Path) -> None:
    with (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        files = "[os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')]"
        process = story.start(launch(PROGRAM, f"os.getsid(0), os.ttyname if os.isatty(0) else '', {files}"))
        story.said(")")
    said = story.log(tail=1).decode()
    assert f"({process.pid}, ''" in said
    assert "/dev/null" in said
    assert str(tmp_path / "ours") not in said


def test_logs_are_followed_until_the_reader_leaves(story: Story) -> None:
    async def follow() -> bytes:
        runtime = story.runtime
        process = await begin(runtime, launch(PROGRAM, "'first'"))
        story.started.append(process)
        logs = runtime.logs("w", tail=0, follow=True)
        text = b""
        async for part in logs:
            if not text:
                await runtime.stop(process, grace=10)
                story.started.append(await begin(runtime, launch(PROGRAM, "'second'")))
            text += part
            if b"second" in text:
                break
        await logs.aclose()  # type: ignore[attr-defined]
        return text

    assert b"second" in story.wait(asyncio.wait_for(follow(), 20))


def test_logs_of_an_unknown_worker_are_not_found(story: Story) -> None:
    with pytest.raises(NotFound, match="nobody"):
        story.log("nobody")


def test_ports_differ_and_are_free(tmp_path: Path) -> None:
    processes = LocalProcesses(tmp_path, "127.0.0.1")
    ports = [processes.free_port() for _ in range(50)]
    assert len(set(ports)) == len(ports)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[-1]))


def test_a_port_in_use_is_passed_over(tmp_path: Path) -> None:
    processes = LocalProcesses(tmp_path, "127.0.0.1")
    port = processes.free_port() + 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        assert processes.free_port() != port


def test_nothing_blocks_the_loop(story: Story, no_blocking: BlockBuster) -> None:
    async def work() -> None:
        process = await begin(story.runtime, launch(PROGRAM, "'hello'"))
        assert story.runtime.poll(process) is None
        assert await story.next_server.adopt(process, NEED)
        assert [part async for part in story.runtime.logs("w", tail=1, follow=False)]
        await story.runtime.stop(process, grace=10)
        assert story.runtime.poll(process) is not None

    story.wait(work())
