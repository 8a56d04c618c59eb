"""The command line and the real server: the life of an instance, of the server, and what bad input does to both."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.fakes import HANG, FakeUpstream, Reply
from tests.harness import Byzer, eventually, free_port

if TYPE_CHECKING:
    from pathlib import Path

MOCK = ("--pretrained_model_type", "saas/mock")
STAT_KEYS = [
    "total_workers",
    "busy_workers",
    "idle_workers",
    "load_balance_strategy",
    "total_requests",
    "state",
    "worker_max_concurrency",
    "workers_last_work_time",
]


def names(byzer: Byzer) -> list[str]:
    return [deployment["name"] for deployment in byzer.json("list")]


def test_the_life_of_an_instance(fresh_byzer: Byzer) -> None:
    byzer = fresh_byzer
    secret = "sk-very-secret"
    deploy = ("deploy", "--model", "chat", *MOCK, "--infer_params", f"saas.api_key={secret}")

    first = byzer.run(*deploy, "--num_workers", "2")
    assert first.stdout.splitlines()[-1] == "Model chat deployed successfully"
    assert "Starting the server" in first.stderr
    again = byzer.run(*deploy, "--num_workers", "2")
    assert again.stdout == "Model chat already deployed\n"
    assert "Starting the server" not in again.stderr
    other = byzer.run(*deploy, "saas.latency=0.01", "--num_workers", "3", code=1)
    assert re.search(r"^num_workers +2 +3$", other.stderr, re.MULTILINE)
    assert "--replace" in other.stderr
    replaced = byzer.run(*deploy, "saas.latency=0.01", "--num_workers", "3", "--replace")
    assert replaced.stdout == "Model chat deployed successfully\n"

    answer = byzer.run("query", "--model", "chat", "--query", "say this back")
    assert "say this back" in answer.stdout
    assert byzer.run("query", "--model", "chat", "--query", "say this back", "--no_stream").stdout == answer.stdout

    stat = byzer.json("stat", "--model", "chat")
    assert list(stat) == STAT_KEYS
    assert (stat["total_workers"], stat["busy_workers"], stat["idle_workers"]) == (3, 0, 3)
    assert (stat["load_balance_strategy"], stat["worker_max_concurrency"]) == ("lru", 1)
    assert stat["state"] == [1, 1, 1]
    assert sorted(stat["total_requests"]) == [0, 1, 1]
    assert all(re.fullmatch(r"[0-9.]+s", time) for time in stat["workers_last_work_time"])
    detail = byzer.json("stat", "--model", "chat", "--detail")
    assert list(detail)[: len(STAT_KEYS)] == STAT_KEYS
    assert "worker_state" in detail

    assert byzer.run("scale", "--model", "chat", "--num_workers", "1").stdout == "Model chat scaled to 1 worker\n"
    assert byzer.json("stat", "--model", "chat")["total_workers"] == 1
    [listed] = byzer.json("list")
    assert (listed["name"], listed["state"], listed["num_workers"]) == ("chat", "ready", 1)
    assert "no engine" in byzer.run("logs", "--model", "chat", code=1).stderr

    assert byzer.run("undeploy", "--model", "chat").stdout == "Model chat undeployed successfully\n"
    assert names(byzer) == []
    assert "chat" in byzer.run("undeploy", "--model", "chat", code=1).stderr
    shown = [first, again, other, replaced]
    assert not any(secret in done.stdout + done.stderr for done in shown)
    assert secret not in byzer.log_tail()

    assert byzer.processes()
    byzer.run("server", "stop")
    assert not byzer.processes()
    assert not (byzer.home / "server.json").exists()


def test_the_last_line_of_an_embedding_instance_is_its_vector(byzer: Byzer) -> None:
    byzer.run("deploy", "--model", "emb", *MOCK, "--infer_params", "saas.model=mock-embedding saas.dimensions=5")
    answer = byzer.json("query", "--model", "emb", "--query", "hello")
    assert len(answer["data"][0]["embedding"]) == 5


def test_a_file_gives_the_flags(byzer: Byzer, tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(
        "model: from_file\n"
        "pretrained-model-type: saas/mock\n"
        "num_workers: 4\n"
        "infer_params:\n"
        "  saas.reply: ENV {{GREETING}}, dear {{NAME}}\n"
    )
    environ = {"GREETING": "good morning", "NAME": "reader"}
    byzer.run("deploy", "--file", file, "--num_workers", "2", env=environ)
    assert byzer.json("stat", "--model", "from_file")["total_workers"] == 2
    answer = byzer.run("query", "--model", "from_file", "--query", "x").stdout
    assert answer == "good morning, dear reader\n"


def test_a_referenced_variable_comes_from_the_deploying_command_and_is_not_stored(byzer: Byzer) -> None:
    byzer.run("server", "start")
    byzer.run(
        *("deploy", "--model", "ref", *MOCK, "--infer_params", "saas.api_key=env:MY_KEY", "saas.demand_key=k-12345"),
        env={"MY_KEY": "k-12345"},
    )
    assert "hi" in byzer.run("query", "--model", "ref", "--query", "hi").stdout
    [shown] = [d for d in byzer.json("list") if d["name"] == "ref"]
    assert shown["spec"]["infer_params"]["saas.api_key"] == "env:MY_KEY"


def test_the_same_deploy_with_another_value_of_a_variable_says_that_it_changes_nothing(byzer: Byzer) -> None:
    words = ("deploy", "--model", "ref2", *MOCK, "--infer_params", "saas.api_key=env:MY_KEY", "saas.demand_key=k-12345")
    byzer.run(*words, env={"MY_KEY": "k-12345"})
    again = byzer.run(*words, env={"MY_KEY": "another"})
    assert again.stdout == "Model ref2 already deployed\n"
    assert "MY_KEY has another value now" in again.stderr
    psutil.Process(byzer.pid).kill()
    assert "hi" in byzer.run("query", "--model", "ref2", "--query", "hi").stdout


def test_the_differences_show_no_password_of_a_proxy(byzer: Byzer) -> None:
    words = ["deploy", "--model", "proxied", "--no_verify", "--pretrained_model_type", "saas/openai", "--infer_params"]
    words += ["saas.api_key=k", "saas.model=m"]
    byzer.run(*words, "saas.proxies=http://joe:pass-one@127.0.0.1:9")
    refused = byzer.run(*words, "saas.proxies=http://joe:pass-two@127.0.0.1:9", code=1)
    assert "saas.proxies" in refused.stderr
    assert "pass-" not in refused.stderr


def test_a_deploy_that_does_not_wait_is_not_undone(byzer: Byzer) -> None:
    deployed = byzer.run("deploy", "--model", "soon", *MOCK, "--no_wait")
    assert deployed.stdout == "Model soon deployed successfully\n"
    assert "soon" in names(byzer)


def test_a_stream_that_is_no_text_is_an_error_and_no_crash(byzer: Byzer) -> None:
    byzer.run("deploy", "--model", "garbage", *MOCK, "--infer_params", "saas.malformed=1")
    broken = byzer.run("query", "--model", "garbage", "--query", "hi", code=1)
    assert "no JSON object" in broken.stderr
    assert "defect" not in broken.stderr


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ("--pretrained_model_type saas/opena", 2, "saas/openai"),
        ("--pretrained_model_type saas/openai", 2, "saas.api_key"),
        ("--pretrained_model_type saas/openai --infer_params saas.api_key=k saas.modle=x", 2, "saas.model"),
        ("--pretrained_model_type saas/mock --infer_params saas.latency=fast", 2, "saas.latency"),
        (
            "--pretrained_model_type saas/openai"
            " --infer_params saas.api_key=k saas.model=x saas.base_url=http://127.0.0.1:1/v1",
            1,
            "cannot be reached",
        ),
        ("--pretrained_model_type saas/mock --infer_params saas.demand_key=a saas.api_key=b", 1, "refused"),
        ("--pretrained_model_type saas/mock --infer_params saas.models=a saas.model=b", 1, "does not list the model"),
        ("--pretrained_model_type openai", 2, "Did you mean saas/openai?"),
        ("--pretrained_model_type custom/auto", 2, "--model_path"),
        ("--pretrained_model_type custom/auto --infer_backend llama_cp --model_path x", 2, "llama_cpp"),
        (
            "--pretrained_model_type custom/auto --infer_backend llama_cpp --model_path /no/such.gguf",
            2,
            "/no/such.gguf",
        ),
        (
            "--pretrained_model_type custom/auto --infer_backend llama_cpp --model_path /etc/hostname"
            " --cpus_per_worker 100000",
            1,
            "CPU",
        ),
        (
            "--pretrained_model_type custom/auto --infer_backend llama_cpp --model_path /etc/hostname"
            " --gpus_per_worker 1000",
            1,
            "GPU",
        ),
    ],
)
def test_a_bad_deployment_is_refused_and_changes_nothing(byzer: Byzer, flags: str, code: int, said: str) -> None:
    byzer.run("server", "start")
    before = names(byzer)
    done = byzer.run("deploy", "--model", "bad", *flags.split(), code=code)
    assert said in done.stderr.rpartition("-" * 50)[2]
    assert done.stdout == ""
    assert names(byzer) == before


def test_without_verification_a_wrong_key_shows_at_the_first_query(byzer: Byzer) -> None:
    params = ("--infer_params", "saas.demand_key=right", "saas.api_key=wrong")
    byzer.run("deploy", "--model", "unverified", *MOCK, *params, "--no_verify")
    done = byzer.run("query", "--model", "unverified", "--query", "hi", code=1)
    assert done.stdout == ""


def test_interrupting_a_deploy_undoes_it(byzer: Byzer, upstream: FakeUpstream) -> None:
    byzer.run("server", "start")
    upstream.script(Reply([HANG]))
    params = ("--infer_params", "saas.api_key=k", "saas.model=x", f"saas.base_url={upstream.url}/v1")
    with byzer.background("deploy", "--model", "halted", "--pretrained_model_type", "saas/openai", *params) as process:
        [request] = upstream.wait_requests(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    request.wait_cancelled()
    assert "halted" not in names(byzer)


def test_commands_at_the_same_moment_start_one_server(fresh_byzer: Byzer) -> None:
    byzer = fresh_byzer
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: byzer.run("deploy", "--model", f"m{n}", *MOCK), range(4)))
    assert names(byzer) == ["m0", "m1", "m2", "m3"]
    supervisors = [p for p in byzer.processes() if "byzerllm.runtime.supervisor" in " ".join(p.cmdline())]
    assert len({p.pid for p in supervisors} - {byzer.pid}) == 1


def test_up_restores_what_a_killed_server_had(fresh_byzer: Byzer) -> None:
    byzer = fresh_byzer
    byzer.run("deploy", "--model", "a", *MOCK)
    byzer.stop()  # kill -9 of the server and of its supervisor
    assert "no longer runs" in byzer.run("stat", "--model", "a", code=1).stderr
    assert "Model a deployed successfully" in byzer.run("up").stdout
    assert "hello" in byzer.run("query", "--model", "a", "--query", "hello").stdout


def test_server_start_status_and_stop(fresh_byzer: Byzer) -> None:
    byzer = fresh_byzer
    url = byzer.run("server", "start").stdout.strip()
    assert byzer.run("server", "start").stdout.strip() == url
    status = byzer.json("server", "status")
    assert (status["url"], status["pid"], status["runtime"]) == (url, byzer.pid, "embedded")
    assert (status["version"], status["home"]) == (byzer.run("version").stdout.strip(), str(byzer.home))
    assert (byzer.home / "server.json").stat().st_mode & 0o777 == 0o600
    assert byzer.run("server", "stop").stdout == "Server stopped\n"
    assert "No server is running" in byzer.run("server", "status", code=1).stderr
    assert byzer.run("server", "stop").stdout == ""


def ask(port: int, key: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_serve_opens_the_api_survives_a_crash_and_ends_with_the_server(fresh_byzer: Byzer) -> None:
    byzer = fresh_byzer
    byzer.run("deploy", "--model", "m", *MOCK)
    port = free_port()
    with byzer.background("serve", "--port", str(port), "--api_key", "sk-serve") as process:
        assert process.stdout
        assert process.stdout.readline() == f"http://127.0.0.1:{port}\n"
        status, models = ask(port, "sk-serve")
        assert (status, [model["id"] for model in models["data"]]) == (200, ["m"])
        assert ask(port, "wrong")[0] == 401
        psutil.Process(byzer.pid).kill()
        assert process.stdout.readline() == f"http://127.0.0.1:{port}\n"
        assert ask(port, "sk-serve")[0] == 200
        byzer.run("server", "stop", timeout=10)  # an open listener does not delay it
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "The server was stopped." in errors


def test_serve_closes_when_interrupted_and_refuses_a_taken_port(byzer: Byzer) -> None:
    port = free_port()
    with byzer.background("serve", "--port", str(port), "--api_key", "sk-serve") as process:
        assert process.stdout
        assert process.stdout.readline()
        taken = byzer.run("serve", "--port", str(port), code=None)
        assert taken.returncode in (1, 2)
        assert str(port) in taken.stderr.rpartition("-" * 50)[2]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0

    def closed() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) != 0

    eventually(closed, 5, "the listener closes")
