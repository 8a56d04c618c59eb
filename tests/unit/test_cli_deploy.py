"""What ``byzerllm deploy`` sends to a server that has another environment and another working directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from byzerllm.cli import deploy
from byzerllm.cli.arguments import parse
from byzerllm.cli.deploy import build_spec, check_type, referenced_environment
from byzerllm.errors import InvalidInput

if TYPE_CHECKING:
    from byzerllm.spec import DeploymentSpec


def spec_of(*words: str) -> DeploymentSpec:
    return build_spec(parse("deploy", deploy.FLAGS, ["--model", "m", *words]))


def test_flags_become_the_spec() -> None:
    spec = spec_of(
        *("--pretrained-model-type", "custom/auto", "--infer_backend", "llama_cpp", "--num_workers", "2"),
        *("--worker_concurrency", "4", "--infer_params", "n_ctx=2048", "--load_balance", "least_busy"),
        *("--max_queue", "7", "--queue_timeout", "1.5"),
    )
    assert (spec.name, spec.pretrained_model_type, spec.infer_backend) == ("m", "custom/auto", "llama_cpp")
    assert (spec.num_workers, spec.worker_concurrency, spec.infer_params) == (2, 4, {"n_ctx": "2048"})
    assert (spec.load_balance, spec.max_queue, spec.queue_timeout) == ("least_busy", 7, 1.5)


@pytest.mark.parametrize("typed", ["openai", "custom/openai", "chatglm"])
def test_a_vendor_without_its_prefix_is_recognised(typed: str) -> None:
    with pytest.raises(InvalidInput, match="begins with saas/") as caught:
        check_type(spec_of("--pretrained_model_type", typed))
    assert caught.value.hint == f"Did you mean saas/{typed.rpartition('/')[2]}?"


def test_other_types_are_the_engines() -> None:
    check_type(spec_of("--pretrained_model_type", "saas/openai"))
    check_type(spec_of("--pretrained_model_type", "custom/auto"))
    check_type(spec_of("--pretrained_model_type", "openai", "--infer_backend", "llama_cpp"))


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/joe")
    assert spec_of("--model_path", "m.gguf").model_path == str(tmp_path / "m.gguf")
    assert spec_of("--model_path", "~/m.gguf").model_path == "/home/joe/m.gguf"
    assert spec_of("--pretrained_model_type", "saas/openai", "--model_path", "kept").model_path == "kept"
    assert spec_of().model_path == ""
    params = spec_of("--infer_params", "k=file:key.txt", "l=file:~/key", "m=env:KEY").infer_params
    assert params == {"k": f"file:{tmp_path / 'key.txt'}", "l": "file:/home/joe/key", "m": "env:KEY"}


def test_only_referenced_variables_are_sent() -> None:
    environ = {"KEY": "sk-1", "OTHER": "x"}
    assert referenced_environment({"a": "env:KEY", "b": "plain", "c": "file:/k"}, environ) == {"KEY": "sk-1"}


@pytest.mark.parametrize("environ", [{}, {"KEY": ""}])
def test_a_referenced_variable_must_be_set(environ: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="environment variable KEY is not set"):
        referenced_environment({"saas.api_key": "env:KEY"}, environ)
