"""The command line against a scripted server: what it sends and prints, and what it makes of a broken one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.fakes import CLOSE, HANG, RESET, Reply, Step, json_reply
from tests.harness import Byzer, eventually
from tests.integration.scripted_server import ScriptedServer, body, ndjson, on_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEPLOY = ("deploy", "--model", "m", "--pretrained_model_type", "saas/mock")


@pytest.fixture
def server(fresh_byzer: Byzer) -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    with server:
        server.announce(fresh_byzer.home)
        yield server


@pytest.fixture
def byzer(fresh_byzer: Byzer, server: ScriptedServer) -> Byzer:
    return fresh_byzer


# deploy


def test_deploy_sends_the_spec_and_shows_progress(byzer: Byzer, server: ScriptedServer) -> None:
    server.answers["POST /admin/deployments"] = ndjson(
        {"event": "accepted"},
        {"event": "progress", "message": "worker 1/2 starting"},
        {"event": "warning", "message": "slow disk"},
        {"event": "ready", "message": "2 workers"},
    )
    done = byzer.run(
        *(*DEPLOY, "--num-workers", "2", "--infer_params", "saas.api_key=env:MY_KEY", "--replace", "--no_verify"),
        env={"MY_KEY": "sk-12345"},
    )
    assert done.stdout == "Model m deployed successfully\n"
    assert body(done) == "m: worker 1/2 starting\nbyzerllm: warning: slow disk\n"
    assert "sk-12345" not in done.stderr
    [request] = server.asked("POST")
    sent = request.json()
    assert sent["spec"]["name"] == "m"
    assert sent["spec"]["num_workers"] == 2
    assert sent["spec"]["infer_params"] == {"saas.api_key": "env:MY_KEY"}
    assert sent["environment"] == {"MY_KEY": "sk-12345"}
    assert (sent["replace"], sent["verify"], sent["wait"]) == (True, False, True)


@pytest.mark.parametrize(
    ("flags", "event", "line"),
    [
        ([], "unchanged", "Model m already deployed"),
        (["--no_wait"], "accepted", "Model m is being deployed"),
    ],
)
def test_other_good_ends_of_a_deploy(
    byzer: Byzer, server: ScriptedServer, flags: list[str], event: str, line: str
) -> None:
    server.answers["POST /admin/deployments"] = ndjson({"event": event, "message": ""})
    assert byzer.run(*DEPLOY, *flags).stdout == f"{line}\n"


def test_a_failed_deploy_tells_the_reason(byzer: Byzer, server: ScriptedServer) -> None:
    error = {"message": "worker 1: out of memory\nlast line", "code": "deployment_failed", "hint": "Use less."}
    server.answers["POST /admin/deployments"] = ndjson({"event": "accepted"}, {"event": "failed", "error": error})
    done = byzer.run(*DEPLOY, code=1)
    assert done.stdout == ""
    assert body(done) == "byzerllm: error: worker 1: out of memory\nlast line\n  Use less.\n"


def test_a_conflict_shows_the_differences_and_names_replace(byzer: Byzer, server: ScriptedServer) -> None:
    differences = [
        {"name": "num_workers", "current": "1", "requested": "2"},
        {"name": "saas.api_key", "current": "******", "requested": "******"},
    ]
    error = {"message": "m is deployed otherwise.", "code": "conflict", "details": {"differences": differences}}
    server.answers["POST /admin/deployments"] = json_reply({"error": error}, 409)
    done = byzer.run(*DEPLOY, "--num_workers", "2", code=1)
    assert body(done).splitlines()[:3] == [
        "PARAMETER     CURRENT  REQUESTED",
        "num_workers   1        2",
        "saas.api_key  ******   ******",
    ]
    assert "--replace" in done.stderr


@pytest.mark.parametrize("fault", [RESET, CLOSE])
def test_a_server_that_dies_during_a_deploy(byzer: Byzer, server: ScriptedServer, fault: Step) -> None:
    server.answers["POST /admin/deployments"] = ndjson({"event": "accepted"}, then=[fault])
    done = byzer.run(*DEPLOY, code=1)
    assert "broke off" in done.stderr
    assert "byzerllm stat --model m" in done.stderr


def test_an_answer_that_ends_without_the_outcome_is_no_success(byzer: Byzer, server: ScriptedServer) -> None:
    server.answers["POST /admin/deployments"] = ndjson({"event": "accepted"})
    done = byzer.run(*DEPLOY, code=1)
    assert "before the outcome was known" in done.stderr


def test_interrupting_a_deploy_closes_the_connection(byzer: Byzer, server: ScriptedServer) -> None:
    server.answers["POST /admin/deployments"] = ndjson({"event": "accepted"}, then=[HANG])
    with byzer.background(*DEPLOY) as process:
        eventually(lambda: any(r.sent for r in server.asked("POST")))
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, output) == (130, "")
    assert errors.endswith("Interrupted.\n")
    server.asked("POST")[0].wait_cancelled()


# stat, list, undeploy, scale, up, server


def test_stat_prints_the_servers_json_in_its_order(byzer: Byzer, server: ScriptedServer) -> None:
    answer = {"total_workers": 2, "busy_workers": 0, "a": [1, 1], "zz": "631.7s", "b": None}
    server.answers["GET /admin/deployments/m/stat"] = json_reply(answer)
    done = byzer.run("stat", "--model", "m", "--detail")
    assert done.stdout == json.dumps(answer, indent=4) + "\n"
    assert body(done) == ""
    assert server.requests[0].path.endswith("?detail=1")


def test_stat_repeats_until_interrupted(byzer: Byzer, server: ScriptedServer) -> None:
    server.answers["GET /admin/deployments/m/stat"] = json_reply({"total_workers": 1})
    with byzer.background("stat", "--model", "m", "--interval", "0.05") as process:
        server.wait_requests(3)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert output.count('"total_workers": 1') >= 3


def test_an_unknown_model_is_the_servers_error(byzer: Byzer) -> None:
    for command in (["stat"], ["undeploy"], ["scale", "--num_workers", "2"], ["logs"]):
        done = byzer.run(*command, "--model", "m", code=1)
        assert done.stdout == ""
        assert "there are: a, b.\n  Run byzerllm list." in done.stderr


def test_names_are_quoted_in_paths(byzer: Byzer, server: ScriptedServer) -> None:
    byzer.run("stat", "--model", "a/../b?c", code=1)
    assert server.requests[0].path == "/admin/deployments/a%2F..%2Fb%3Fc/stat?detail=0"


DEPLOYMENT = {
    "name": "m",
    "pretrained_model_type": "saas/mock",
    "infer_backend": "",
    "task": "chat",
    "model": "mock-chat",
    "state": "degraded",
    "reason": "worker 2 died\nmore",
    "num_workers": 2,
    "ready_workers": 1,
    "slots_free": 1,
    "slots_total": 1,
    "queued": 0,
    "total_requests": 7,
    "load_balance": "lru",
    "created_at": 1.0,
    "spec": {},
}


@pytest.mark.parametrize("command", ["list", "stat"])
def test_all_instances_are_json_when_piped_and_a_table_on_a_terminal(
    byzer: Byzer, server: ScriptedServer, command: str
) -> None:
    server.answers["GET /admin/deployments"] = json_reply({"deployments": [DEPLOYMENT]})
    assert byzer.json(command) == [DEPLOYMENT]
    shown = on_terminal(byzer, command)
    assert re.search(r"^MODEL .*STATE", shown, re.MULTILINE)
    assert re.search(r"^m .*\b1/2\b", shown, re.MULTILINE)
    assert "degraded" in shown
    assert "more" not in shown


def test_undeploy_and_scale(byzer: Byzer, server: ScriptedServer) -> None:
    progress = {"event": "progress", "message": "draining"}
    server.answers["DELETE /admin/deployments/m"] = ndjson(progress, {"event": "gone", "message": ""})
    server.answers["POST /admin/deployments/m/scale"] = ndjson(
        {"event": "accepted"}, {"event": "progress", "message": "starting"}, {"event": "ready", "message": ""}
    )
    done = byzer.run("undeploy", "--model", "m", "--force")
    assert (done.stdout, body(done)) == ("Model m undeployed successfully\n", "m: draining\n")
    assert server.requests[0].path.endswith("?force=1")
    done = byzer.run("scale", "--model", "m", "--num_workers", "3")
    assert (done.stdout, body(done)) == ("Model m scaled to 3 workers\n", "m: starting\n")
    assert server.asked("POST")[0].json() == {"num_workers": 3}


def test_up_fails_when_one_instance_does(byzer: Byzer, server: ScriptedServer) -> None:
    error = {"message": "no such file", "code": "deployment_failed", "hint": "Look."}
    server.answers["POST /admin/restore"] = ndjson(
        {"event": "progress", "model": "a", "message": "starting"},
        {"event": "done", "ready": ["a"], "failed": {"b": error}},
    )
    done = byzer.run("up", code=1)
    assert done.stdout == "Model a deployed successfully\n"
    assert body(done) == "a: starting\nbyzerllm: error: b: no such file\n  Look.\n"


def test_server_status_is_json_when_piped(byzer: Byzer, server: ScriptedServer) -> None:
    status = byzer.json("server", "status")
    assert list(status) == ["url", "pid", "runtime", "version", "home"]
    assert re.search(rf"address +{server.url}", on_terminal(byzer, "server", "status"))


# a server that is not there, or not what it should be


def test_a_server_json_of_a_dead_server(byzer: Byzer, server: ScriptedServer) -> None:
    server.stop()
    for command in (
        ["stat", "--model", "m"],
        ["list"],
        ["undeploy", "--model", "m"],
        ["query", "--model", "m", "--query", "x"],
    ):
        done = byzer.run(*command, code=1)
        assert "server.json is of one that no longer runs" in done.stderr
        assert "byzerllm up" in done.stderr
    assert "No server is running." in byzer.run("server", "status", code=1).stderr


def test_another_server_at_the_same_address(byzer: Byzer, server: ScriptedServer) -> None:
    server.announce(byzer.home, token="other")
    for command in (["stat", "--model", "m"], ["list"], ["query", "--model", "m", "--query", "x"]):
        assert "it refuses its token" in byzer.run(*command, code=1).stderr
    assert [r.path for r in server.requests if r.path.startswith("/v1")] == []
    assert "No server is running." in byzer.run("server", "status", code=1).stderr


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply([b"<html>"], 502), "status 502: <html>"),
        (json_reply({"error": "text"}, 500), "status 500"),
        (Reply([b"no json"]), "no JSON object"),
        (json_reply([1]), "no JSON object"),
        (Reply([b"not http\r\n\r\n"], framing="raw"), "broke off"),
        (Reply([CLOSE], framing="raw"), "broke off"),
    ],
)
def test_an_answer_that_is_none(byzer: Byzer, server: ScriptedServer, reply: Reply, said: str) -> None:
    server.answers["GET /admin/deployments/m/stat"] = reply
    assert said in body(byzer.run("stat", "--model", "m", code=1))


def test_a_closed_pipe_is_quiet(byzer: Byzer, server: ScriptedServer) -> None:
    server.answers["GET /admin/deployments/m/logs"] = Reply([b"x" * 100_000] * 20, framing="chunked")
    with byzer.background("logs", "--model", "m") as process:
        assert process.stdout
        assert process.stderr
        os.read(process.stdout.fileno(), 10)
        process.stdout.close()
        assert process.wait(10) == 141
        assert process.stderr.read().endswith("-" * 50 + "\nUsing this machine.\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_a_full_disk_is_no_defect(byzer: Byzer, server: ScriptedServer) -> None:
    server.answers["GET /admin/deployments"] = json_reply({"deployments": []})
    for target, said in ((">/dev/full", "byzerllm: error: [Errno 28] No space left on device\n"), (">&-", "")):
        command = ["sh", "-c", f'"$@" {target}', "sh", *byzer.argv("list")]
        done = subprocess.run(command, env=byzer.env(), capture_output=True, text=True, timeout=30)
        assert (done.returncode, body(done)) == (int(bool(said)), said)


def test_a_defect_is_one_line_and_a_file(byzer: Byzer, server: ScriptedServer) -> None:
    (byzer.home / "logs").mkdir()
    server.answers["GET /admin/deployments"] = json_reply({"no": "deployments"})
    done = byzer.run("list", code=1)
    [line, where] = body(done).splitlines()
    assert line == "byzerllm: error: unexpected KeyError: 'deployments'"
    [file] = (byzer.home / "logs").iterdir()
    assert str(file) in where
    assert "Traceback" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


# wrong input: refused before a server is started for it


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("deploy", "--model is missing"),
        ("deploy --model m --num_workers 0", "--num_workers 0 must be at least 1"),
        ("deploy --model m --num_workers -3", "--num_workers -3 must be at least 1"),
        ("deploy --model m --cpus_per_worker -1", "--cpus_per_worker -1 must be at least 0"),
        ("deploy --model m --gpus_per_worker nan", "--gpus_per_worker nan must be a number"),
        ("deploy --model a/b", "is no plain name"),
        ("deploy --model m --pretrained_model_type sass/openai", "must be saas/TYPE or custom/TYPE"),
        ("deploy --model m --infer_params saas.api_key=env:NO_SUCH", "NO_SUCH is not set"),
        ("deploy --model m --file /no/such/file", "No such file"),
        ("deploy --model m --ray_address h", "'h' is no address of a Ray cluster"),
        ("deploy --model m --ray_address http://h:8265", "HOST:PORT or ray://HOST:PORT"),
        ("deploy --model m --resources TPU=many", "TPU=many is not of the form name=number"),
        ("deploy --model m --resources TPU", "TPU= is not of the form name=number"),
        ("deploy --model m --resources TPU=0", "--resources TPU 0 must be at least 0.0001"),
        ("deploy --model m --resources GPU=1", "Use --cpus_per_worker and --gpus_per_worker"),
        ("deploy --model m --resources TPU=1", "this command uses this machine alone"),
        ("deploy --model m --num_worker_s 2", "Did you mean --num_workers?"),
        ("scale --model m --num_workers 0", "byzerllm undeploy --model m"),
        ("stat --interval -1", "--interval -1"),
        ("logs --model m --tail -1", "--tail -1"),
        ("serve --host 0.0.0.0", "no key is set"),
        ("serve --host example.com", "no key is set"),
        ("serve --port 70000", "--port 70000"),
        ("serve --ssl_keyfile /etc/hostname", "must be given together"),
        ("serve --ssl_keyfile /no/key --ssl_certfile /no/cert", "there is no such file"),
        ("serve --api_key env:NO_SUCH", "NO_SUCH is not set"),
        ("storage start --cluster x", "Byzer Retrieval"),
        ("statt", "Did you mean stat?"),
        ("server restart", "must be one of: start, stop, status"),
    ],
)
def test_wrong_input_is_refused_and_changes_nothing(fresh_byzer: Byzer, command: str, said: str) -> None:
    done = fresh_byzer.run(*command.split(), code=2)
    assert done.stdout == ""
    assert said in done.stderr
    assert not fresh_byzer.home.exists()


@pytest.mark.parametrize("command", ["stat --model m", "list", "undeploy --model m", "scale --model m --num_workers 1"])
def test_without_a_server_there_is_nothing_to_look_at(fresh_byzer: Byzer, command: str) -> None:
    done = fresh_byzer.run(*command.split(), code=1)
    assert "No server is running, so nothing is deployed." in done.stderr
    assert not fresh_byzer.home.exists()


def test_a_home_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = Byzer(tmp_path / "file" / "home").run("server", "start", code=2)
    assert "cannot be written" in done.stderr
    assert "Set BYZERLLM_HOME" in done.stderr
