"""Private instances end to end: real engines under the real server, driven by the real command."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.fixtures_models import SAY
from tests.harness import Byzer, eventually

LLAMA = ("--pretrained_model_type", "custom/auto", "--infer_backend", "llama_cpp")
FAST = ("--infer_params", "n_threads=1", "verbose=false", "n_gpu_layers=0")  # a GPU of Ray's books is none


def deploy(byzer: Byzer, name: str, model: Path, *more: str, code: int = 0) -> Any:
    return byzer.run("deploy", "--model", name, *LLAMA, "--model_path", model, *FAST, *more, code=code)


def detail(byzer: Byzer, name: str) -> Any:
    return byzer.json("stat", "--model", name, "--detail")


def pids(byzer: Byzer, name: str) -> list[int]:
    return [p["pid"] for p in detail(byzer, name)["processes"]]


def ask(byzer: Byzer, name: str, **fields: Any) -> Any:
    body = {"model": name, "messages": [{"role": "user", "content": "hello world"}], **fields}
    return byzer.http("POST", "/v1/chat/completions", body)


def append_answer(answers: list[Any], byzer: Byzer, name: str) -> None:
    answers.append(ask(byzer, name, max_tokens=900))


def is_busy(byzer: Byzer, name: str) -> bool:
    return bool(byzer.json("stat", "--model", name)["busy_workers"] == 1)


def test_a_gguf_answers_with_its_text(byzer: Byzer, tiny_gguf: Path) -> None:
    done = deploy(byzer, "tiny", tiny_gguf, "--worker_concurrency", "2")
    assert done.stdout.splitlines()[-1] == "Model tiny deployed successfully"
    assert "worker 0 ready" in done.stderr
    assert byzer.run("query", "--model", "tiny", "--query", "hello world").stdout == SAY + "\n"
    answer = ask(byzer, "tiny")
    assert answer.json()["choices"][0]["message"]["content"] == SAY
    assert answer.headers["x-byzerllm-worker"] == "0"
    stat = detail(byzer, "tiny")
    assert stat["worker_max_concurrency"] == 2
    assert stat["state"] == [2]
    assert stat["tokens"]["completion"] > 0
    assert "serving tiny" in byzer.run("logs", "--model", "tiny").stdout


def test_its_readiness_request_is_not_counted(byzer: Byzer, tiny_gguf: Path) -> None:
    deploy(byzer, "uncounted", tiny_gguf)
    assert byzer.json("stat", "--model", "uncounted")["total_requests"] == [0]


def test_the_context_is_per_slot(byzer: Byzer, loop_gguf: Path) -> None:
    more = ("--worker_concurrency", "4", "--infer_params", "n_ctx=256")
    deploy(byzer, "context", loop_gguf, *more)
    usage = ask(byzer, "context", max_tokens=4096).json()["usage"]
    assert 200 <= usage["total_tokens"] <= 260


def test_what_a_host_has_to_say_is_told_once(byzer: Byzer, tiny_gguf: Path) -> None:
    done = deploy(byzer, "clamped", tiny_gguf, "--num_workers", "2", "--infer_params", "n_ctx=1000000")
    words = "The context is 2048 tokens, for which the model was trained, not n_ctx=1000000."
    assert done.stderr.splitlines().count(words) == 1


def test_embeddings(byzer: Byzer, tiny_gguf: Path) -> None:
    deploy(byzer, "vectors", tiny_gguf, "--infer_params", "embedding=true", "pooling_type=mean")
    answer = byzer.http("POST", "/v1/embeddings", {"model": "vectors", "input": ["one", "two"]}).json()
    assert [len(d["embedding"]) for d in answer["data"]] == [64, 64]
    piped = json.loads(byzer.run("query", "--model", "vectors", "--query", "one").stdout)
    assert len(piped["data"][0]["embedding"]) == 64
    refused = ask(byzer, "vectors")
    assert refused.status == 400
    assert "embedding" in refused.json()["error"]["message"]


def test_scale_up_leaves_running_workers_alone_and_down_drains(byzer: Byzer, loop_gguf: Path) -> None:
    deploy(byzer, "scaled", loop_gguf, "--infer_params", "n_ctx=1024")
    first = pids(byzer, "scaled")
    byzer.run("scale", "--model", "scaled", "--num_workers", "3")
    grown = pids(byzer, "scaled")
    assert grown[:1] == first
    assert len(grown) == 3

    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(byzer, "scaled", max_tokens=600))) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: byzer.json("stat", "--model", "scaled")["busy_workers"] == 3)
    byzer.run("scale", "--model", "scaled", "--num_workers", "1")
    for thread in threads:
        thread.join()
    assert [a.status for a in answers] == [200, 200, 200]  # those of the leaving workers were finished first
    assert pids(byzer, "scaled") == first
    assert not any(psutil.pid_exists(pid) for pid in grown[1:])


def test_replace_rolls_over_without_refusing(byzer: Byzer, tiny_gguf: Path) -> None:
    deploy(byzer, "rolled", tiny_gguf, "--num_workers", "2")
    before = pids(byzer, "rolled")
    conflict = deploy(byzer, "rolled", tiny_gguf, "--num_workers", "2", "--worker_concurrency", "3", code=1)
    assert "--replace" in conflict.stderr
    assert pids(byzer, "rolled") == before

    stop = threading.Event()
    statuses: list[int] = []

    def keep_asking() -> None:
        while not stop.is_set():
            statuses.append(ask(byzer, "rolled").status)

    asker = threading.Thread(target=keep_asking)
    asker.start()
    try:
        deploy(byzer, "rolled", tiny_gguf, "--num_workers", "2", "--worker_concurrency", "3", "--replace")
    finally:
        stop.set()
        asker.join()
    assert set(statuses) == {200}
    assert not set(before) & set(pids(byzer, "rolled"))
    assert byzer.json("stat", "--model", "rolled")["state"] == [3, 3]


def test_a_chat_that_is_replaced_by_embeddings_is_none_any_more(byzer: Byzer, tiny_gguf: Path) -> None:
    deploy(byzer, "turned", tiny_gguf)
    deploy(byzer, "turned", tiny_gguf, "--infer_params", "embedding=true", "--replace")
    refused = ask(byzer, "turned")
    assert refused.status == 400
    assert "turned has no chat. It has: embedding" in refused.json()["error"]["message"]
    vector = byzer.http("POST", "/v1/embeddings", {"model": "turned", "input": "one"})
    assert (vector.status, len(vector.json()["data"])) == (200, 1)
    shown = {model["id"]: model["task"] for model in byzer.http("GET", "/v1/models").json()["data"]}
    assert shown["turned"] == "embedding"


def test_a_replacement_that_fails_leaves_the_instance_as_it_was(byzer: Byzer, tiny_gguf: Path) -> None:
    deploy(byzer, "steady", tiny_gguf)
    before = pids(byzer, "steady")
    bad = ("--infer_params", "chat_template='{% broken'", "--replace")
    failed = deploy(byzer, "steady", tiny_gguf, *bad, code=1)
    assert "byzerllm: error:" in failed.stderr
    eventually(lambda: pids(byzer, "steady") == before)
    assert ask(byzer, "steady").status == 200
    assert deploy(byzer, "steady", tiny_gguf).stdout == "Model steady already deployed\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "does not exist"), (b"no model at all", "GGUF"), (b"cut", "cut short")],
    ids=["missing", "no gguf", "cut short"],
)
def test_a_bad_model_file_changes_nothing(
    byzer: Byzer, tiny_gguf: Path, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "model.gguf"
    if content == b"cut":
        path.write_bytes(tiny_gguf.read_bytes()[:-5000])
    elif content is not None:
        path.write_bytes(content)
    failed = deploy(byzer, "bad", path, code=2)
    assert reason in failed.stderr
    assert "bad" not in [d["name"] for d in byzer.json("list")]


def test_more_than_the_machine_has(byzer: Byzer, tiny_gguf: Path) -> None:
    for flag, word in (("--cpus_per_worker", "CPUs"), ("--gpus_per_worker", "GPUs")):
        failed = deploy(byzer, "greedy", tiny_gguf, flag, "4096", code=1)
        assert word in failed.stderr
        assert "4096" in failed.stderr
    assert "greedy" not in [d["name"] for d in byzer.json("list")]


def test_a_deploy_that_does_not_wait_goes_on_after_the_command(byzer: Byzer, tiny_gguf: Path) -> None:
    assert deploy(byzer, "later", tiny_gguf, "--no_wait").stdout == "Model later is being deployed\n"
    eventually(lambda: [d["state"] for d in byzer.json("list") if d["name"] == "later"] == ["ready"])


def test_undeploy_leaves_no_process(byzer: Byzer, tiny_gguf: Path) -> None:
    deploy(byzer, "gone", tiny_gguf, "--num_workers", "2")
    running = pids(byzer, "gone")
    assert byzer.run("undeploy", "--model", "gone").stdout == "Model gone undeployed successfully\n"
    assert not any(psutil.pid_exists(pid) for pid in running)
    missing = byzer.run("undeploy", "--model", "gone", code=1)
    assert "There is no instance named 'gone'" in missing.stderr


def test_undeploy_waits_for_a_running_request_and_force_does_not(byzer: Byzer, loop_gguf: Path) -> None:
    for name, force, statuses in (("patient", (), {200}), ("forced", ("--force",), {502, 503})):
        deploy(byzer, name, loop_gguf, "--infer_params", "n_ctx=1024")
        answers: list[Any] = []
        asker = threading.Thread(target=append_answer, args=(answers, byzer, name))
        asker.start()
        eventually(partial(is_busy, byzer, name))
        byzer.run("undeploy", "--model", name, *force)
        asker.join()
        assert answers[0].status in statuses, answers[0].body
