"""What dies is brought back: engines, the server, its supervisor, a deploying command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
from tests import engine_programs
from tests.fakes import HANG, Reply
from tests.fixtures_models import SAY
from tests.harness import Byzer, eventually
from tests.integration.test_private import LLAMA, ask, deploy, detail, pids

from byzerllm.runtime.holder import _guard


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)


def text(answer: Any) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def goes_on(byzer: Byzer, killed: int, answers: list[str], wanted: int) -> bool:
    return byzer.pid != killed and len(answers) > wanted


def test_a_killed_engine_comes_back(fresh_byzer: Byzer, tiny_gguf: Path) -> None:
    byzer = fresh_byzer
    deploy(byzer, "tiny", tiny_gguf, "--num_workers", "2")
    first, second = pids(byzer, "tiny")
    kill(first)
    for _ in range(6):  # the other worker answers meanwhile, and a request that met the dead one is tried again
        assert text(ask(byzer, "tiny")) == SAY
    eventually(lambda: detail(byzer, "tiny")["deployment_state"] == "ready" and first not in pids(byzer, "tiny"))
    restarted = [p for p in detail(byzer, "tiny")["processes"] if p["restarts"]]
    assert len(restarted) == 1
    assert second in pids(byzer, "tiny")
    assert byzer.json("stat", "--model", "tiny")["state"] == [1, 1]


def test_requests_wait_for_the_only_engine_to_come_back(fresh_byzer: Byzer, tiny_gguf: Path) -> None:
    byzer = fresh_byzer
    deploy(byzer, "tiny", tiny_gguf)
    kill(pids(byzer, "tiny")[0])
    assert text(ask(byzer, "tiny")) == SAY


def test_a_hung_engine_is_replaced(make_byzer: Any, tiny_gguf: Path) -> None:
    byzer: Byzer = make_byzer(BYZERLLM_PROBE_INTERVAL="0.2")
    deploy(byzer, "tiny", tiny_gguf)
    hung = pids(byzer, "tiny")[0]
    kill(hung, signal.SIGSTOP)
    eventually(lambda: pids(byzer, "tiny") != [hung] and detail(byzer, "tiny")["deployment_state"] == "ready", 20)
    assert text(ask(byzer, "tiny")) == SAY
    assert not psutil.pid_exists(hung)


def test_an_engine_that_cannot_start_again_says_why(fresh_byzer: Byzer, tiny_gguf: Path, tmp_path: Path) -> None:
    byzer = fresh_byzer
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny_gguf.read_bytes())
    deploy(byzer, "tiny", model)
    model.unlink()
    kill(pids(byzer, "tiny")[0])
    eventually(lambda: detail(byzer, "tiny")["processes"][0]["restarts"] >= 3, 20)
    refused = ask(byzer, "tiny")
    assert refused.status == 503
    assert "model.gguf" in refused.json()["error"]["message"]
    assert detail(byzer, "tiny")["deployment_state"] == "failed"
    model.write_bytes(tiny_gguf.read_bytes())
    eventually(lambda: detail(byzer, "tiny")["deployment_state"] == "ready", 20)
    assert text(ask(byzer, "tiny")) == SAY


def test_a_killed_server_is_back_with_the_same_engines(fresh_byzer: Byzer, tiny_gguf: Path) -> None:
    byzer = fresh_byzer
    deploy(byzer, "tiny", tiny_gguf, "--num_workers", "2")
    byzer.run("deploy", "--model", "mock", "--pretrained_model_type", "saas/mock", "--num_workers", "3")
    engines, server, url, token = pids(byzer, "tiny"), byzer.pid, byzer.url, byzer.token
    kill(server)
    assert text(ask(byzer, "tiny")) == SAY  # the connection waits in the socket that the supervisor holds
    assert (byzer.pid != server, byzer.url, byzer.token) == (True, url, token)
    assert pids(byzer, "tiny") == engines
    assert byzer.json("stat", "--model", "mock")["total_workers"] == 3
    assert byzer.run("query", "--model", "mock", "--query", "still there").stdout == "You said: still there\n"


def test_killed_again_and_again_under_load(fresh_byzer: Byzer, tiny_gguf: Path) -> None:
    byzer = fresh_byzer
    deploy(byzer, "tiny", tiny_gguf, "--worker_concurrency", "2")
    engines = pids(byzer, "tiny")
    stop = threading.Event()
    good: list[str] = []
    broken: list[Exception] = []

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                good.append(text(ask(byzer, "tiny", timeout=30)))
            except (OSError, HTTPException) as error:  # it was in flight when the server died
                broken.append(error)

    askers = [threading.Thread(target=keep_asking) for _ in range(4)]
    for asker in askers:
        asker.start()
    for _ in range(3):
        before, answered = byzer.pid, len(good)
        kill(before)
        eventually(partial(goes_on, byzer, before, good, answered + 10), 20)
    stop.set()
    for asker in askers:
        asker.join()
    assert set(good) == {SAY}
    assert len(broken) <= 3 * len(askers)
    assert pids(byzer, "tiny") == engines
    assert byzer.json("stat", "--model", "tiny")["state"] == [2]


def test_engines_that_died_with_the_server_are_started_again(fresh_byzer: Byzer, tiny_gguf: Path) -> None:
    byzer = fresh_byzer
    deploy(byzer, "tiny", tiny_gguf)
    for process in byzer.processes():
        process.kill()
    eventually(lambda: not byzer.processes())
    assert "no server" in byzer.run("stat", "--model", "tiny", code=1).stderr.lower()
    byzer.run("up")
    assert text(ask(byzer, "tiny")) == SAY


def test_secrets_from_the_environment_survive_a_crash_and_are_never_stored(fresh_byzer: Byzer, upstream: Any) -> None:
    byzer = fresh_byzer
    byzer.run("server", "start")
    base = ("--pretrained_model_type", "saas/openai", "--no_verify", "--infer_params")
    params = (f"saas.base_url={upstream.url}", "saas.model=m", "saas.api_key=env:MY_SECRET_KEY")
    byzer.run("deploy", "--model", "vendor", *base, *params, env={"MY_SECRET_KEY": "sk-not-to-be-found"})
    kill(byzer.pid)
    eventually(lambda: byzer.http("GET", "/health").status == 200)
    ask(byzer, "vendor")
    assert upstream.requests[-1].headers["authorization"] == "Bearer sk-not-to-be-found"
    for path in byzer.home.rglob("*"):
        assert not path.is_file() or b"sk-not-to-be-found" not in path.read_bytes(), path


def test_an_engine_whose_holder_dies_may_clean_up(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-c", engine_programs.CLEANING, str(tmp_path / "file")]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as engine:
        assert engine.stdout
        assert engine.stdout.readline() == b"watching\n"
        _guard(engine.pid).close()  # as it is when the holder's process has ended
        assert engine.wait(20) == -signal.SIGKILL
        eventually(lambda: not (tmp_path / "file").exists())


def test_a_deploy_that_is_interrupted_leaves_nothing(fresh_byzer: Byzer, upstream: Any) -> None:
    byzer = fresh_byzer
    byzer.run("server", "start")
    upstream.default = Reply([HANG])
    base = ("--pretrained_model_type", "saas/openai", "--infer_params")
    params = (f"saas.base_url={upstream.url}", "saas.api_key=k", "saas.model=m")
    with byzer.background("deploy", "--model", "slow", *base, *params) as command:
        eventually(lambda: upstream.requests)
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=30)
    assert command.returncode == 130
    assert "Traceback" not in said
    eventually(upstream.requests[0].cancelled)
    assert byzer.json("list") == []


def test_an_interrupted_engine_start_leaves_no_process(fresh_byzer: Byzer, tiny_gguf: Path) -> None:
    byzer = fresh_byzer
    engine_programs.install(byzer.home, "llama_cpp", engine_programs.SLOW)
    byzer.run("server", "start")
    calm = len(byzer.processes())
    with byzer.background(
        "deploy", "--model", "many", *LLAMA, "--model_path", tiny_gguf, "--num_workers", "6"
    ) as command:
        eventually(lambda: len(byzer.processes()) > calm + 1)
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=30)
    eventually(lambda: byzer.json("list") == [] and len(byzer.processes()) == calm, 30)
