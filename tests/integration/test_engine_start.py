"""The start of a private instance, honestly told: which engine, what it does, why it failed, what does not fit."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scripts import tiny_gguf as tiny
from tests import engine_programs
from tests.harness import Byzer, eventually
from tests.integration.test_private import LLAMA, detail

AUTO = ("--pretrained_model_type", "custom/auto")


def deploy(byzer: Byzer, name: str, model: Path, *more: str, code: int = 0) -> Any:
    return byzer.run("deploy", "--model", name, *AUTO, "--model_path", model, *more, code=code)


def test_an_engine_that_was_left_out_is_chosen_and_the_same_flags_change_nothing(byzer: Byzer, tiny_gguf: Path) -> None:
    done = deploy(byzer, "chosen", tiny_gguf)
    assert "infer_backend: llama_cpp (a GGUF file)\n" in done.stderr
    assert [d["infer_backend"] for d in byzer.json("list") if d["name"] == "chosen"] == ["llama_cpp"]
    again = deploy(byzer, "chosen", tiny_gguf)
    assert again.stdout == "Model chosen already deployed\n"
    assert deploy(byzer, "chosen", tiny_gguf, "--infer_backend", "llama_cpp").stdout == again.stdout


def test_an_engine_that_is_not_installed_names_the_command(byzer: Byzer, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    refused = deploy(byzer, "missing", tmp_path, code=1)
    assert "infer_backend: transformers (a model folder, and --gpus_per_worker is 0)" in refused.stderr
    assert "byzerllm: error: The engine transformers is not installed.\n" in refused.stderr
    assert "  Run: byzerllm engine install transformers\n" in refused.stderr


@pytest.fixture
def large_gguf(tmp_path: Path) -> Path:
    """A small file whose context would need 256 GiB."""
    path = tmp_path / "large.gguf"
    tiny.write(path, shape=tiny.Shape(ctx=2**30))
    return path


def test_what_cannot_fit_into_memory_is_refused_with_the_numbers(byzer: Byzer, large_gguf: Path) -> None:
    refused = deploy(byzer, "large", large_gguf, "--infer_params", "n_ctx=0", code=1)
    assert "byzerllm: error: large needs 256" in refused.stderr
    assert "256.0 GiB for the context), but " in refused.stderr
    assert "--no_verify deploys without this check" in refused.stderr
    assert "large" not in [d["name"] for d in byzer.json("list")]
    assert deploy(byzer, "small", large_gguf, "--infer_params", "n_ctx=512").returncode == 0


def test_without_the_check_it_is_a_warning(fresh_byzer: Byzer, large_gguf: Path) -> None:
    engine_programs.install(fresh_byzer.home, "llama_cpp", engine_programs.BROKEN)
    tried = deploy(fresh_byzer, "large", large_gguf, "--no_verify", "--infer_params", "n_ctx=0", code=1)
    assert "byzerllm: warning: large needs 256" in tried.stderr


def test_a_failure_begins_with_its_cause_and_shows_no_traceback(fresh_byzer: Byzer, tiny_gguf: Path) -> None:
    engine_programs.install(fresh_byzer.home, "llama_cpp", engine_programs.BROKEN)
    failed = deploy(fresh_byzer, "broken", tiny_gguf, *LLAMA[2:], code=1)
    said = failed.stderr.partition("byzerllm: error: ")[2]
    assert said.startswith("This llama.cpp does not know the architecture novel")
    assert "Worker 0 ended with exit code 1. Its last log lines:\n" in said
    assert said.splitlines()[-1] == "RuntimeError: cannot load"
    assert len(said.splitlines()) <= 5
    assert "File " not in said


def starting(byzer: Byzer, model: Path) -> subprocess.Popen[str]:
    argv = byzer.argv("deploy", "--model", "slow", *LLAMA, "--model_path", model)
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, env=byzer.env(), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def doing(byzer: Byzer) -> list[str]:
    return [p["doing"] for p in detail(byzer, "slow")["processes"]] if byzer.json("list") else []


def test_what_it_does_while_it_starts_is_told(fresh_byzer: Byzer, tiny_gguf: Path) -> None:
    byzer = fresh_byzer
    folder = engine_programs.install(byzer.home, "llama_cpp", engine_programs.SLOW)
    byzer.run("server", "start")
    with starting(byzer, tiny_gguf) as command:
        eventually(lambda: doing(byzer) == ["preparing its slots"], 30)
        assert detail(byzer, "slow")["deployment_state"] == "starting"
        (folder / "GO").touch()
        out, said = command.communicate(timeout=30)
    assert command.returncode == 0, said
    assert out == "Model slow deployed successfully\n"
    told = [line for line in said.splitlines() if line.startswith("slow: worker 0")]
    assert told == [
        "slow: worker 0 starting",
        "slow: worker 0: loading weights",
        "slow: worker 0: preparing its slots",
        "slow: worker 0 ready",
    ]
    assert doing(byzer) == [""]


def test_interrupting_the_deploy_of_a_slow_engine_leaves_no_process(fresh_byzer: Byzer, tiny_gguf: Path) -> None:
    byzer = fresh_byzer
    engine_programs.install(byzer.home, "llama_cpp", engine_programs.SLOW)
    byzer.run("server", "start")
    calm = len(byzer.processes())
    with starting(byzer, tiny_gguf) as command:
        eventually(lambda: doing(byzer) == ["preparing its slots"], 30)
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=30)
    assert command.returncode == 130, said
    eventually(lambda: byzer.json("list") == [] and len(byzer.processes()) == calm, 30)


def test_workers_that_are_added_must_fit_into_memory(fresh_byzer: Byzer, large_gguf: Path) -> None:
    byzer = fresh_byzer
    (engine_programs.install(byzer.home, "llama_cpp", engine_programs.SLOW) / "GO").touch()
    deploy(byzer, "large", large_gguf, "--no_verify", "--infer_params", "n_ctx=0")
    refused = byzer.run("scale", "--model", "large", "--num_workers", "3", code=1)
    assert "byzerllm: error: large needs 512" in refused.stderr
    assert "byzerllm deploy --replace --no_verify" in refused.stderr
    assert [p["phase"] for p in detail(byzer, "large")["processes"]] == ["ready"]


def test_what_an_engine_answers_with_500_is_asked_once_elsewhere_and_keeps_nobody_else_waiting(
    fresh_byzer: Byzer, tiny_gguf: Path
) -> None:
    byzer = fresh_byzer
    folder = engine_programs.install(byzer.home, "llama_cpp", engine_programs.MOODY)
    deploy(byzer, "moody", tiny_gguf, "--num_workers", "2")

    def ask(text: str) -> int:
        messages = [{"role": "user", "content": text}]
        return byzer.http("POST", "/v1/chat/completions", {"model": "moody", "messages": messages}).status

    assert {ask("odd") for _ in range(10)} == {500}
    assert (folder / "ASKED").read_text() == 2 * 10 * "once\n"
    assert ask("good") == 200
    byzer.run("scale", "--model", "moody", "--num_workers", "1")
    assert {ask("odd") for _ in range(10)} == {500}
    assert (folder / "ASKED").read_text() == 3 * 10 * "once\n"
    assert ask("good") == 200
