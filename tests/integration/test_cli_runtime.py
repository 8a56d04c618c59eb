"""Which server a command talks to, and what it says of it. A mere listener stands in for a Ray cluster."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from tests.fakes import FakeUpstream, Reply, json_reply
from tests.harness import Byzer, free_port
from tests.integration.scripted_server import ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STARTED = "-" * 50 + "\n"


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines on stderr after the banner."""
    return done.stderr.rpartition(STARTED)[2].splitlines()


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of something that greets as a cluster's head does: with the settings frame of HTTP/2."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=greet, args=(listener,), daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def greet(listener: socket.socket) -> None:
    with suppress(OSError):  # the listener was shut down
        while True:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(100).startswith(b"PRI * HTTP/2.0")
                connection.sendall(bytes(3) + b"\x04" + bytes(5))


@pytest.fixture
def announce(fresh_byzer: Byzer) -> Iterator[Callable[..., None]]:
    """``announce(name, folder, ray_address)``: a server with one instance of that name, on record in the folder."""
    with ExitStack() as stack:

        def announce(instance: str, folder: Path, ray_address: str = "") -> None:
            server = ScriptedServer()
            stack.enter_context(server)
            row = dict.fromkeys(("state", "load_balance", "num_workers"), 0)
            server.answers["GET /admin/deployments"] = json_reply({"deployments": [{"name": instance, **row}]})
            folder.mkdir(parents=True, exist_ok=True)
            server.announce(folder, ray_address=ray_address)

        yield announce


@pytest.fixture
def ray(fresh_byzer: Byzer, announce: Callable[..., None], cluster: str) -> str:
    """The address of a cluster whose server is on record."""
    announce("on_ray", fresh_byzer.home / "ray", cluster)
    return cluster


def listed(byzer: Byzer, *flags: str, env: dict[str, str] | None = None) -> tuple[str, list[str]]:
    """Whose instances ``list`` shows, and what it says of that."""
    done = byzer.run("list", *flags, env=env)
    [name] = [line.split('"')[3] for line in done.stdout.splitlines() if '"name"' in line]
    return name, said(done)


def test_a_cluster_is_found_by_flag_variable_and_address_file(fresh_byzer: Byzer, ray: str, tmp_path: Path) -> None:
    assert listed(fresh_byzer, "--ray_address", ray) == ("on_ray", [f"Using the Ray cluster at {ray}."])
    by_variable = [f"Using the Ray cluster at {ray}, which RAY_ADDRESS names."]
    assert listed(fresh_byzer, env={"RAY_ADDRESS": ray}) == ("on_ray", by_variable)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(ray)
    by_file = [f"Using the Ray cluster at {ray}, which this machine belongs to."]
    assert listed(fresh_byzer, env={"RAY_TMPDIR": str(tmp_path)}) == ("on_ray", by_file)
    assert listed(fresh_byzer, env={"RAY_TMPDIR": "", "TMPDIR": str(tmp_path)}) == ("on_ray", by_file)


def test_a_server_on_record_is_asked_without_loading_ray(fresh_byzer: Byzer, ray: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "byzerllm", "list", "--ray_address", ray]
    done = subprocess.run(command, env=fresh_byzer.env(), capture_output=True, text=True, timeout=30)
    assert (done.returncode, "on_ray" in done.stdout) == (0, True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "byzerllm.client.ray_server" in loaded
    assert not loaded & {"ray", "byzerllm.runtime.ray", "uvloop", "asyncio", "psutil"}


def test_another_name_of_the_same_cluster(fresh_byzer: Byzer, ray: str) -> None:
    same = ray.replace("127.0.0.1", "localhost")
    assert listed(fresh_byzer, "--ray_address", same) == ("on_ray", [f"Using the Ray cluster at {same}."])


def test_of_two_servers_the_chosen_one_answers_and_the_other_is_named(
    fresh_byzer: Byzer, announce: Callable[..., None], ray: str
) -> None:
    announce("here", fresh_byzer.home)
    assert listed(fresh_byzer, "--ray_address", ray) == (
        "on_ray",
        [
            f"Using the Ray cluster at {ray}.",
            "A server on this machine alone runs too: --ray_address embedded talks to it.",
        ],
    )
    there = f"A server on the Ray cluster at {ray} runs too: --ray_address {ray} talks to it."
    for flags in ((), ("--ray_address", "embedded")):
        assert listed(fresh_byzer, *flags) == ("here", ["Using this machine.", there])


def test_a_server_that_no_longer_runs_is_not_named(fresh_byzer: Byzer, announce: Callable[..., None], ray: str) -> None:
    gone = ScriptedServer()
    with gone:
        gone.announce(fresh_byzer.home)
    assert listed(fresh_byzer, "--ray_address", ray)[1] == [f"Using the Ray cluster at {ray}."]


def test_a_cluster_that_was_stopped_is_named(fresh_byzer: Byzer, announce: Callable[..., None], tmp_path: Path) -> None:
    announce("here", fresh_byzer.home)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    name, [line] = listed(fresh_byzer, env={"RAY_TMPDIR": str(tmp_path)})
    assert name == "here"
    assert line.startswith("Using this machine: the Ray cluster at 127.0.0.1:")
    assert line.endswith("does not answer (connection refused).")


@pytest.mark.parametrize(
    "command", ["list", "stat", "up", "server start", "deploy --model m", "query --model m --query x"]
)
def test_a_cluster_asked_for_that_does_not_answer_is_an_error(fresh_byzer: Byzer, command: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    by_flag = fresh_byzer.run(*command.split(), "--ray_address", f"ray://{address}", code=1)
    by_variable = fresh_byzer.run(*command.split(), env={"RAY_ADDRESS": address}, code=1)
    for done, named in (
        (by_flag, f"ray://{address}, which --ray_address"),
        (by_variable, f"{address}, which RAY_ADDRESS"),
    ):
        problem, hint = said(done)
        assert problem == f"byzerllm: error: No Ray cluster answers at {named} names: connection refused."
        assert "--ray_address embedded" in hint
    assert not fresh_byzer.home.exists()


def test_another_program_at_the_address_is_no_cluster(fresh_byzer: Byzer) -> None:
    with FakeUpstream() as other:
        other.default = Reply([b"HTTP/1.1 400 Bad Request\r\n\r\n"], framing="raw")
        done = fresh_byzer.run("list", "--ray_address", f"127.0.0.1:{other.port}", code=1)
    assert said(done)[0].endswith("which --ray_address names: what listens there is not Ray.")


def test_a_cluster_that_hangs_does_not_hold_the_command_up(fresh_byzer: Byzer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        address = f"127.0.0.1:{hanging.getsockname()[1]}"
        done = fresh_byzer.run("list", "--ray_address", address, code=1)
        assert said(done)[0].endswith(f"at {address}, which --ray_address names: timed out.")


def test_a_cluster_with_tls_is_not_greeted(fresh_byzer: Byzer, announce: Callable[..., None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        announce("on_ray", fresh_byzer.home / "ray", address)
        shown = listed(fresh_byzer, "--ray_address", address, env={"RAY_USE_TLS": "1"})
        assert shown == ("on_ray", [f"Using the Ray cluster at {address}."])


def test_version_needs_no_cluster(fresh_byzer: Byzer) -> None:
    done = fresh_byzer.run("version", env={"RAY_ADDRESS": f"127.0.0.1:{free_port()}"})
    assert said(done) == []
