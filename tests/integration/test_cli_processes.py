"""Whether a process runs, as ``byzerllm server stop`` sees it."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest
from tests.harness import eventually
from tests.integration.scripted_server import ScriptedServer

from byzerllm.client import launch
from byzerllm.client.launch import is_left
from byzerllm.client.server_file import ServerInfo, process_exists


def test_a_process_that_nobody_has_waited_for_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with process:
        assert process_exists(process.pid)
        assert process.stdin
        process.stdin.close()
        # Popen has not been asked for its status: it is a zombie until then.
        eventually(lambda: not process_exists(process.pid))
        assert process.returncode is None
    assert not process_exists(process.pid)


def test_processes_of_others_and_of_ours_exist() -> None:
    assert process_exists(os.getpid())
    assert process_exists(1)


def on_ray(server: ScriptedServer, **other: object) -> ServerInfo:
    record = {**server.record(), "supervisor_pid": 0, "ray_address": "10.9.9.9:6379", **other}
    return msgspec.convert(record, ServerInfo)


def test_a_server_on_ray_is_left_while_its_process_is() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    server = ScriptedServer()
    with server:
        assert is_left(on_ray(server))
        assert not is_left(on_ray(server, pid=ended.pid))


def test_a_server_on_ray_on_another_machine_is_left_while_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "is_this_machine", lambda host: False)
    server = ScriptedServer()
    with server:
        assert is_left(on_ray(server))
    assert not is_left(on_ray(server))
