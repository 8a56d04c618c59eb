from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.hf_files import configure, whole_folder

from byzerllm.engines.base import EngineOptions
from byzerllm.engines.host.vllm_arguments import names as argument_names
from byzerllm.engines.hosting import OPTIONS_VARIABLE
from byzerllm.engines.vllm import Vllm
from byzerllm.engines.vllm_arguments import FORMS, flags, our_reason
from byzerllm.errors import InvalidInput
from byzerllm.spec import DeploymentSpec
from byzerllm.wire.base import Task

VLLM = Vllm()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return whole_folder(tmp_path)


def options(path: Path | str = "/models/m", params: dict[str, str] | None = None, **fields: Any) -> EngineOptions:
    spec = {"name": "tiny", "pretrained_model_type": "custom/auto", "infer_backend": "vllm", **fields}
    return VLLM.parse(DeploymentSpec(model_path=str(path), infer_params=params or {}, **spec))


def arguments(params: dict[str, str] | None = None, **fields: Any) -> Any:
    return options(params=params, **fields).values["arguments"]


def refusal(params: dict[str, str] | None = None, **fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        options(params=params, **fields)
    return caught.value


def argv(**backend: str) -> list[str]:
    """The words after the server's own."""
    launch = VLLM.command(options(params={f"backend.{k}": v for k, v in backend.items()}), "127.0.0.1", 7, "secret")
    return list(launch.argv[launch.argv.index("--disable-uvicorn-access-log") + 1 :])


# Parameters


def test_defaults_without_a_gpu() -> None:
    assert arguments() == {"tensor_parallel_size": 1, "max_num_seqs": 100, "enforce_eager": True}
    assert options().slots == 100


@pytest.mark.parametrize(("gpus", "parallel", "share"), [(1, 1, 0.9), (4, 4, 0.9), (0.5, 1, 0.45)])
def test_defaults_on_gpus(gpus: float, parallel: int, share: float) -> None:
    expected = {"tensor_parallel_size": parallel, "max_num_seqs": 7, "gpu_memory_utilization": share}
    assert arguments(gpus_per_worker=gpus, worker_concurrency=7) == expected


def test_the_parameters_of_the_guide() -> None:
    given = {
        "backend.gpu_memory_utilization": "0.8",
        "backend.max_model_len": "28000",
        "backend.enforce_eager": "False",
        "backend.trust_remote_code": "true",
        "backend.quantization": "awq",
        "backend.dtype": "half",
        "backend.max-num-seqs": "256",
    }
    assert arguments(given, gpus_per_worker=1) == {
        "gpu_memory_utilization": 0.8,
        "max_model_len": 28000,
        "enforce_eager": False,
        "trust_remote_code": True,
        "quantization": "awq",
        "dtype": "half",
        "max_num_seqs": 256,
        "tensor_parallel_size": 1,
    }


def test_each_form_of_an_argument_on_the_command_line() -> None:
    given = argv(
        enforce_eager="false",
        enable_lora="1",
        disable_log_stats="no",
        aggregate_engine_logging="yes",
        max_model_len="4k",
        max_num_batched_tokens="1K",
        gpu_memory_utilization=".5",
        hf_overrides='{"a": [1, "b c"]}',
        lora_modules="one=/a,two=/b",
        cudagraph_capture_sizes="[1, 2]",
        chat_template="/t.jinja",
        some_new_switch="True",
        some_other_new_switch="false",
        some_new_number="3",
        **{"compilation_config.mode": "3"},
    )
    assert given == [
        "--no-enforce-eager",
        "--enable-lora",
        "--aggregate-engine-logging",
        "--max-model-len=4000",
        "--max-num-batched-tokens=1024",
        "--gpu-memory-utilization=0.5",
        '--hf-overrides={"a": [1, "b c"]}',
        "--lora-modules",
        "one=/a",
        "two=/b",
        "--cudagraph-capture-sizes",
        "1",
        "2",
        "--chat-template=/t.jinja",
        "--some-new-switch",
        "--no-some-other-new-switch",
        "--some-new-number=3",
        "--compilation-config.mode=3",
        "--tensor-parallel-size=1",
        "--max-num-seqs=100",
    ]


@pytest.mark.parametrize("modules", ["tiny=/a,other=/b", '{"name": "tiny", "path": "/a"}'])
def test_the_adapter_with_the_instances_name_answers(modules: str) -> None:
    given = options(params={"backend.enable_lora": "true", "backend.lora_modules": modules})
    assert given.warnings == ()
    launch = VLLM.command(given, "127.0.0.1", 7, "secret")
    assert "--served-model-name=tiny-base" in launch.argv, "vLLM takes a name once"
    assert json.loads(launch.ready_body)["model"] == "tiny"


def test_adapters_that_no_request_reaches_are_told() -> None:
    given = options(params={"backend.enable_lora": "true", "backend.lora_modules": "other=/a"})
    assert "no adapter has the instance's name, tiny" in given.warnings[0]
    assert "--served-model-name=tiny" in VLLM.command(given, "127.0.0.1", 7, "secret").argv


@pytest.mark.parametrize("modules", ["tiny", "tiny=", "=/a", '{"name": "tiny"}', "[1]", '{"name": 1, "path": "/a"}'])
def test_an_adapter_without_a_name_or_path_is_refused(modules: str) -> None:
    refused = refusal({"backend.enable_lora": "true", "backend.lora_modules": modules})
    assert "must be name=path" in refused.message
    assert refused.param == "backend.lora_modules"


def test_adapters_are_refused_where_they_are_not_enabled() -> None:
    assert "needs backend.enable_lora=true" in refusal({"backend.lora_modules": "tiny=/a"}).message


def test_a_length_that_is_to_be_found_out() -> None:
    assert list(flags({"max_model_len": arguments({"backend.max_model_len": "auto"})["max_model_len"]})) == [
        "--max-model-len=-1"
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_model_len", "much"),
        ("max_model_len", "1.5K"),
        ("max_num_seqs", "1.5"),
        ("gpu_memory_utilization", "half"),
        ("gpu_memory_utilization", "-1"),
        ("gpu_memory_utilization", "1.5"),
        ("enforce_eager", "maybe"),
        ("hf_overrides", '{"a": '),
        ("lora_modules", "[1, "),
        ("dtype", ""),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(name: str, value: str) -> None:
    assert refusal({f"backend.{name}": value}).param == f"backend.{name}"


@pytest.mark.parametrize(
    "name",
    [
        "host",
        "port",
        "api_key",
        "api-key",
        "served_model_name",
        "uvicorn_log_level",
        "ssl_keyfile",
        "data_parallel_size",
    ],
)
def test_what_byzerllm_decides_is_refused_with_the_reason(name: str) -> None:
    refused = refusal({f"backend.{name}": "1"})
    assert "is not for users to set" in refused.message
    assert refused.hint


def test_what_users_set_is_not_ours() -> None:
    assert [name for name in FORMS if our_reason(name)] == []


def test_a_parameter_without_its_prefix_is_refused_with_the_whole_name() -> None:
    assert "Did you mean backend.max_model_len?" in str(refusal({"max_model_len": "1"}))


def test_a_parameter_in_two_spellings_is_refused() -> None:
    assert "twice" in str(refusal({"backend.max_model_len": "1", "backend.max-model-len": "2"}))


def test_parameters_of_the_older_tool_have_no_effect_and_that_is_said() -> None:
    found = options(params={"backend.worker_use_ray": "true", "backend.engine_use_ray": "false", "udfName": "f"})
    assert found.values["arguments"] == arguments()
    assert [warning.split(" ")[0] for warning in found.warnings] == [
        "backend.worker_use_ray",
        "backend.engine_use_ray",
        "udfName",
    ]


def fetching(**backend: str) -> tuple[str, Any]:
    found = options(params={f"backend.{name}": text for name, text in backend.items()})
    return found.wire, found.values["arguments"].get("allowed_media_domains")


def test_vllm_fetches_only_from_where_the_deployer_says() -> None:
    assert fetching() == ("vllm", None)
    assert fetching(allowed_media_domains="a.example,b.example") == ("vllm_fetching", ["a.example", "b.example"])
    assert fetching(allowed_local_media_path="/images") == ("vllm_fetching", ["nothing.invalid"])
    assert fetching(allowed_media_domains="[]") == ("vllm_fetching", ["nothing.invalid"])
    launch = VLLM.command(options(), "127.0.0.1", 7, "secret")
    assert launch.env["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


@pytest.mark.parametrize(
    ("path", "backend", "offline"),
    [
        ("/models/m", {}, True),
        ("/models/m", {"dtype": "half", "chat_template": "{% if a/b %}", "compilation_config": '{"mode": 3}'}, True),
        ("/models/m", {"tokenizer": "owner/tokens"}, False),
        ("/models/m", {"speculative_config": '{"model": "owner/draft", "num_speculative_tokens": 3}'}, False),
        ("/models/m", {"enable_lora": "1", "lora_modules": "a=/here,b=owner/adapter"}, False),
        ("/models/m", {"enable_lora": "1", "lora_modules": '[{"name": "b", "path": "owner/adapter"}]'}, False),
        ("owner/model", {}, False),
    ],
)
def test_the_hub_is_closed_where_nothing_is_on_it(path: str, backend: dict[str, str], offline: bool) -> None:
    given = options(path, params={f"backend.{name}": text for name, text in backend.items()})
    launch = VLLM.command(given, "127.0.0.1", 7, "secret")
    assert json.loads(launch.env[OPTIONS_VARIABLE])["offline"] is offline
    assert "HF_HUB_OFFLINE" not in launch.env, "the server's own setting counts"


def test_a_type_that_vllm_does_not_run_is_refused() -> None:
    assert "custom/auto" in str(refusal(pretrained_model_type="custom/bge"))
    assert options(pretrained_model_type="auto").task is Task.CHAT


def test_model_path_is_required() -> None:
    assert "--model_path is missing" in str(refusal(path=""))


# GPUs


@pytest.mark.parametrize(
    ("gpus", "params"),
    [
        (2, {"tensor_parallel_size": "4"}),
        (0.5, {"tensor_parallel_size": "2"}),
        (4, {"tensor_parallel_size": "2", "pipeline_parallel_size": "1"}),
        (3, {"pipeline_parallel_size": "2"}),
        (1.5, {}),
    ],
)
def test_gpus_that_contradict_are_refused(gpus: float, params: dict[str, str]) -> None:
    assert "--gpus_per_worker" in str(refusal({f"backend.{k}": v for k, v in params.items()}, gpus_per_worker=gpus))


def test_gpus_are_divided_among_the_stages_of_a_pipeline() -> None:
    found = arguments({"backend.pipeline_parallel_size": "2"}, gpus_per_worker=4)
    assert found["tensor_parallel_size"] == 2


def test_ranks_on_cpus_are_as_many_as_asked_for() -> None:
    assert arguments({"backend.tensor_parallel_size": "2"})["tensor_parallel_size"] == 2


# What it answers


@pytest.mark.parametrize(
    ("changes", "params", "task"),
    [
        ({}, {}, Task.CHAT),
        ({"architectures": ["BertModel"]}, {}, Task.EMBEDDING),
        ({"architectures": ["BertForSequenceClassification"]}, {}, Task.RERANK),
        ({}, {"runner": "pooling"}, Task.EMBEDDING),
        ({}, {"convert": "embed"}, Task.EMBEDDING),
        ({}, {"convert": "classify"}, Task.RERANK),
        ({}, {"hf_overrides": '{"architectures": ["Qwen3ForSequenceClassification"]}'}, Task.RERANK),
        ({"architectures": ["BertForSequenceClassification"]}, {"convert": "embed"}, Task.EMBEDDING),
        ({"architectures": ["BertModel"]}, {"runner": "generate"}, Task.CHAT),
    ],
)
def test_tasks(folder: Path, changes: dict[str, Any], params: dict[str, str], task: Task) -> None:
    found = options(configure(folder, **changes), {f"backend.{k}": v for k, v in params.items()})
    assert found.task is task
    assert found.values["arguments"].get("runner") == ("pooling" if task is not Task.CHAT else params.get("runner"))
    launch = VLLM.command(found, "h", 1, "t")
    assert (
        launch.ready_path
        == {
            Task.CHAT: "/v1/completions",
            Task.EMBEDDING: "/v1/embeddings",
            Task.RERANK: "/v1/rerank",
        }[task]
    )
    assert json.loads(launch.ready_body)["model"] == "tiny"


def test_a_model_for_another_engine_is_refused(folder: Path) -> None:
    whisper = configure(folder, architectures=["WhisperForConditionalGeneration"], model_type="whisper")
    refused = refusal(path=whisper)
    assert "speech recognition" in refused.message
    assert "transformers" in str(refused.hint)


# The command


def test_the_token_and_our_own_facts_are_not_in_the_command() -> None:
    found = options(params={"backend.hf_token": "hf-secret"}, num_workers=3, cpus_per_worker=2.5)
    launch = VLLM.command(found, "127.0.0.1", 7, "secret")
    assert "secret" not in " ".join(launch.argv)
    assert launch.env["VLLM_API_KEY"] == "secret"
    assert launch.env["HF_TOKEN"] == "hf-secret"
    assert launch.env["VLLM_NO_USAGE_STATS"] == launch.env["DO_NOT_TRACK"] == "1"
    handed = json.loads(launch.env[OPTIONS_VARIABLE])
    assert (handed["slots"], handed["on_gpu"], handed["threads"], handed["sharers"]) == (100, False, 2, 3)
    for word in ("--model=/models/m", "--served-model-name=tiny", "--host=127.0.0.1", "--port=7"):
        assert word in launch.argv


def test_a_name_on_the_hub_may_be_fetched() -> None:
    launch = VLLM.command(options("Qwen/Qwen3-8B"), "h", 1, "t")
    assert "HF_HUB_OFFLINE" not in launch.env
    assert "--model=Qwen/Qwen3-8B" in launch.argv


# The list that vLLM gives of its own arguments


def test_the_names_of_a_parsers_arguments() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-model-len", "-m")
    parser.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction)
    parser.add_argument("--no-cache", action="store_true")
    assert argument_names(parser) == ["enforce_eager", "max_model_len", "no_cache"]
