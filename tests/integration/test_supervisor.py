"""The supervisor with a small program in place of the server, which answers each connection with its process number."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.harness import eventually, free_port

from byzerllm.runtime import supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SERVER = """
import json, os, signal, socket, subprocess, sys, time
mode, home = os.environ["MODE"], os.environ["BYZERLLM_HOME"]
if mode == "fails":
    sys.exit(7)
listener = socket.socket(fileno=int(os.environ["BYZERLLM_LISTEN_FD"]))
told = b""
if "BYZERLLM_SECRETS_FD" in os.environ:
    secrets = int(os.environ["BYZERLLM_SECRETS_FD"])
    told = os.pread(secrets, 100, 0)
    os.pwrite(secrets, b"the secret", 0)
if os.path.exists(home + "/server.json"):
    time.sleep(0.3)  # a server that was restarted takes its time, and its clients wait
orphan = subprocess.Popen(["sleep", "100"], start_new_session=True).pid if mode == "orphan" else 0
signal.signal(signal.SIGTERM, (lambda *_: None) if mode == "stubborn" else lambda *_: sys.exit(0))
with open(home + "/new.json", "w") as file:
    json.dump({"pid": os.getpid(), "supervisor": int(os.environ["BYZERLLM_SUPERVISOR_PID"])}, file)
os.replace(home + "/new.json", home + "/server.json")
while True:
    client, _ = listener.accept()
    client.sendall(json.dumps([os.getpid(), told.decode(), orphan]).encode())
    client.close()
    if mode == "ends":
        sys.exit(0)
"""
RUNNER = """
import sys
from byzerllm.runtime import supervisor
from byzerllm.settings import Settings
supervisor.KILL_AFTER_DRAIN = 0.3
command = (sys.executable, "-c", sys.argv[1])
raise SystemExit(supervisor.supervise(Settings.read(), any_port=sys.argv[2] == "any", command=command))
"""


class Supervised:
    """A supervisor in a process of its own, and its server's answers."""

    def __init__(self, home: Path, port: int, stderr: Path, *, mode: str = "serves", any_port: bool = False) -> None:
        self.home, self.port, self.stderr = home, port, stderr
        environ = {"BYZERLLM_HOME": str(home), "BYZERLLM_PORT": str(port), "BYZERLLM_DRAIN_TIMEOUT": "0"}
        with stderr.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUNNER, textwrap.dedent(SERVER), "any" if any_port else "this"],
                env={**os.environ, **environ, "MODE": mode},
                stderr=file,
                start_new_session=True,
            )

    def announced(self) -> int:
        """The server's process number, once it has written it."""

        def read() -> int:
            file = self.home / "server.json"
            return int(json.loads(file.read_text("utf-8"))["pid"]) if file.exists() else 0

        return eventually(read, 20, "server.json")

    def ask(self) -> tuple[int, str, int]:
        """Whatever server accepts the connection: its number, the secret that it was told, its orphan."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            pid, told, orphan = json.loads(connection.makefile().read())
            return pid, told, orphan

    def end(self) -> tuple[int, str]:
        code = self.process.wait(timeout=20)
        return code, self.stderr.read_text("utf-8")

    def stop(self) -> tuple[int, str]:
        self.process.terminate()
        return self.end()


def await_end(pid: int) -> None:
    eventually(lambda: not psutil.pid_exists(pid), what=f"the end of process {pid}, which is no zombie either")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """Starts supervisors, all of one home and port unless told otherwise; nothing of them is left at the end."""
    port = free_port()
    started: list[Supervised] = []

    def start(*, home: Path = tmp_path / "home", port: int = port, **given: object) -> Supervised:
        stderr = tmp_path / f"stderr-{len(started)}"
        started.append(Supervised(home, port, stderr, **given))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("BYZERLLM_HOME") == str(tmp_path / "home"):
            process.kill()


def test_the_server_serves_and_ends_in_order(start: Callable[..., Supervised], tmp_path: Path) -> None:
    supervised = start()
    pid = supervised.announced()
    assert supervised.ask() == (pid, "", 0)
    announced = json.loads((tmp_path / "home" / "server.json").read_text("utf-8"))
    assert announced["supervisor"] == supervised.process.pid
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    code, said = supervised.stop()
    assert code == 0
    assert "SIGTERM: stopping" in said
    assert not (tmp_path / "home" / "server.json").exists()
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="secrets are handed on in a memory file")
def test_clients_wait_for_the_next_server_which_is_told_the_secrets(start: Callable[..., Supervised]) -> None:
    supervised = start()
    first = supervised.announced()
    for _ in range(3):
        before, _, _ = supervised.ask()
        os.kill(before, signal.SIGKILL)
        await_end(before)
        after, told, _ = supervised.ask()  # never refused
        assert (after != before, told) == (True, "the secret")
    assert after != first
    assert supervised.stop()[0] == 0


def test_a_server_that_ends_by_itself_ends_the_supervisor(start: Callable[..., Supervised]) -> None:
    supervised = start(mode="ends")
    supervised.announced()
    supervised.ask()
    assert supervised.end()[0] == 0


def test_a_server_that_was_never_ready_is_not_started_again(start: Callable[..., Supervised]) -> None:
    code, said = start(mode="fails").end()
    assert code == 7
    assert said.count("server started") == 1
    assert "exit code 7" in said


def test_a_server_that_does_not_end_is_killed(start: Callable[..., Supervised]) -> None:
    supervised = start(mode="stubborn")
    pid = supervised.announced()
    code, said = supervised.stop()
    assert code == 128 + signal.SIGKILL
    assert "killed" in said
    assert not psutil.pid_exists(pid)


def test_a_home_has_one_server(start: Callable[..., Supervised]) -> None:
    first = start()
    first.announced()
    code, said = start(port=free_port()).end()
    assert code == supervisor.EXIT_LOCKED
    assert "runs already" in said
    assert first.stop()[0] == 0
    again = start()
    again.announced()
    assert again.stop()[0] == 0


def test_the_server_outlives_its_supervisor_and_keeps_the_home(start: Callable[..., Supervised]) -> None:
    supervised = start()
    pid = supervised.announced()
    supervised.process.kill()
    supervised.end()
    assert supervised.ask()[0] == pid
    assert start(port=free_port()).end()[0] == supervisor.EXIT_LOCKED
    os.kill(pid, signal.SIGKILL)
    await_end(pid)
    again = start()
    eventually(lambda: again.announced() != pid)
    assert again.stop()[0] == 0


def test_a_port_that_is_asked_for_and_taken_is_an_error(start: Callable[..., Supervised]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = start(port=port).end()
    assert code == supervisor.EXIT_FAILED
    assert f"port {port} is taken" in said


def test_without_a_port_asked_for_the_next_free_one_is_taken(start: Callable[..., Supervised]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        supervised = start(port=taken.getsockname()[1], any_port=True)
        pid = supervised.announced()
        listening = {c.laddr.port for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN}
        assert min(listening) > taken.getsockname()[1]
        assert supervised.stop()[0] == 0


def test_a_home_that_cannot_be_used_is_an_error(start: Callable[..., Supervised], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, said = start(home=tmp_path / "file").end()
    assert code == supervisor.EXIT_HOME
    assert f"{tmp_path / 'file'} cannot be used" in said
    assert "BYZERLLM_HOME" in said


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt orphans")
def test_what_a_killed_server_leaves_is_waited_for(start: Callable[..., Supervised]) -> None:
    supervised = start(mode="orphan")
    pid = supervised.announced()
    orphan = supervised.ask()[2]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: psutil.Process(orphan).ppid() == supervised.process.pid)
    os.kill(orphan, signal.SIGKILL)
    await_end(orphan)
    eventually(lambda: supervised.announced() != pid)
    os.kill(supervised.ask()[2], signal.SIGKILL)
    assert supervised.stop()[0] == 0


def test_it_is_small(start: Callable[..., Supervised]) -> None:
    supervised = start()
    supervised.announced()
    assert psutil.Process(supervised.process.pid).memory_info().rss < 30 * 2**20
    assert supervised.stop()[0] == 0
