from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from byzerllm.engines import engine, names
from byzerllm.engines.hosting import OPTIONS_VARIABLE
from byzerllm.engines.llama_cpp_parameters import ELSEWHERE, PARAMETERS
from byzerllm.errors import InvalidInput
from byzerllm.spec import DeploymentSpec

LLAMA = engine("llama_cpp")


def spec(*, kind: str = "custom/auto", path: str = "/models/m.gguf", **fields: Any) -> DeploymentSpec:
    return DeploymentSpec(name="tiny", pretrained_model_type=kind, model_path=path, **fields)


def values(**params: str) -> Any:
    return LLAMA.parse(spec(infer_params=params)).values


def refusal(**params: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        LLAMA.parse(spec(infer_params=params))
    return caught.value


def test_registry_names_the_engines_and_makes_them() -> None:
    assert names() == ("deepspeed", "funasr", "llama_cpp", "transformers", "vllm")
    assert [engine(name).name for name in names()] == list(names())


def test_an_unknown_engine_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InvalidInput, match="Did you mean llama_cpp"):
        engine("llama-cpp")


@pytest.mark.parametrize("kind", ["custom/auto", "auto", "custom/llama2", "llama2", "llama"])
def test_types_that_llama_cpp_can_run(kind: str) -> None:
    options = LLAMA.parse(spec(kind=kind))
    assert (options.model_path, options.slots, options.task) == ("/models/m.gguf", 1, "chat")


@pytest.mark.parametrize("kind", ["custom/bge", "saas/auto", "custom/qwen_vl_chat"])
def test_other_types_are_refused(kind: str) -> None:
    with pytest.raises(InvalidInput, match="custom/auto"):
        LLAMA.parse(spec(kind=kind))


def test_model_path_is_required() -> None:
    with pytest.raises(InvalidInput, match="--model_path is missing"):
        LLAMA.parse(spec(path=""))


def test_slots_are_the_concurrency_within_the_limit_of_llama_cpp() -> None:
    assert LLAMA.parse(spec(worker_concurrency=256)).slots == 256
    with pytest.raises(InvalidInput, match="256 slots"):
        LLAMA.parse(spec(worker_concurrency=257))


def test_defaults() -> None:
    assert values() == {
        "model_alias": "tiny",
        "n_gpu_layers": 0,
        "cache_ram_mib": 1024,
        "verbosity": 3,
        "sharers": 1,
        "gpus": 0,
    }


@pytest.mark.parametrize("gpus", [0.5, 1, 2])
def test_a_worker_with_gpus_has_as_many_layers_there_as_fit(gpus: float) -> None:
    def layers(**params: str) -> tuple[int, int]:
        found = LLAMA.parse(spec(gpus_per_worker=gpus, infer_params={"model_draft": "/d.gguf", **params})).values
        return found["n_gpu_layers"], found["speculative.draft.n_gpu_layers"]

    assert layers() == (-1, -1)
    assert layers(n_gpu_layers="7") == (7, 7)
    assert layers(n_gpu_layers_draft="0") == (-1, 0)


def test_whole_cpus_are_the_threads_unless_threads_are_given() -> None:
    assert LLAMA.parse(spec(cpus_per_worker=4.5)).values["cpuparams.n_threads"] == 4
    assert "cpuparams.n_threads" not in LLAMA.parse(spec(cpus_per_worker=0.5)).values
    both = spec(cpus_per_worker=4, infer_params={"n_threads": "2"})
    assert LLAMA.parse(both).values["cpuparams.n_threads"] == 2


@pytest.mark.parametrize(
    ("name", "text", "attribute", "value"),
    [
        ("n_gpu_layers", "-1", "n_gpu_layers", -1),
        ("split_mode", "row", "split_mode", 2),
        ("split_mode", "2", "split_mode", 2),
        ("tensor_split", "3,1", "tensor_split", [3.0, 1.0]),
        ("numa", "distribute", "numa", 1),
        ("n_threads", "1", "cpuparams.n_threads", 1),
        ("n_threads_batch", "2", "cpuparams_batch.n_threads", 2),
        ("flash_attn", "true", "flash_attn_type", 1),
        ("flash_attn", "off", "flash_attn_type", 0),
        ("flash_attn", "auto", "flash_attn_type", -1),
        ("offload_kqv", "false", "no_kv_offload", True),
        ("type_k", "Q8_0", "cache_type_k", 8),
        ("type_v", "8", "cache_type_v", 8),
        ("pooling_type", "cls", "pooling_type", 2),
        ("seed", "-1", "sampling.seed", 4294967295),
        ("seed", "42", "sampling.seed", 42),
        ("last_n_tokens_size", "64", "sampling.penalty_last_n", 64),
        ("verbose", "False", "verbosity", 2),
        ("reasoning_format", "deepseek-legacy", "reasoning_format", 2),
        ("chat_template", "chatml", "chat_template", "chatml"),
        ("rope_freq_base", "10000", "rope_freq_base", 10000.0),
        ("use_mmap", "true", "load_mode", 1),
        ("use_mmap", "false", "load_mode", 0),
        ("use_mlock", "true", "load_mode", 3),
        ("lora_path", "/a.gguf", "lora_adapters", [("/a.gguf", 1.0)]),
        ("chat_template", "/a.jinja", "chat_template", "/a.jinja"),
        ("mmproj", "/p.gguf", "mmproj.path", "/p.gguf"),
        ("mmproj_offload", "false", "mmproj_use_gpu", False),
        ("model_draft", "/d.gguf", "speculative.draft.mparams.path", "/d.gguf"),
        ("reranking", "true", "pooling_type", 4),
        ("pooling_type", "rank", "embedding", True),
    ],
)
def test_a_parameter_becomes_llama_cpps_own(name: str, text: str, attribute: str, value: object) -> None:
    assert values(**{name: text})[attribute] == value


def test_parameters_that_belong_together() -> None:
    assert values(use_mmap="false", use_mlock="true")["load_mode"] == 2
    assert values(lora_path="/a.gguf", lora_scale="0.5")["lora_adapters"] == [("/a.gguf", 0.5)]
    two = "/a.gguf, /b.gguf"
    assert values(lora_path=two, lora_scale="0.5,-1")["lora_adapters"] == [("/a.gguf", 0.5), ("/b.gguf", -1.0)]
    assert values(lora_path=two, lora_scale="2")["lora_adapters"] == [("/a.gguf", 2.0), ("/b.gguf", 2.0)]
    draft = values(model_draft="/d.gguf", draft_max="8", n_gpu_layers="3")
    assert draft["speculative.types"] == [1]
    assert (draft["speculative.draft.n_max"], draft["speculative.draft.n_gpu_layers"]) == (8, 3)
    assert (
        values(model_draft="/d.gguf", n_gpu_layers_draft="0", n_gpu_layers="3")["speculative.draft.n_gpu_layers"] == 0
    )


@pytest.mark.parametrize(
    ("params", "tasks"),
    [
        ({}, ["chat", "completion", "responses"]),
        ({"embedding": "false"}, ["chat", "completion", "responses"]),
        ({"chat_template": "none"}, ["completion"]),
        ({"embedding": "true"}, ["embedding"]),
        ({"reranking": "true"}, ["rerank", "score"]),
        ({"embedding": "true", "pooling_type": "rank"}, ["rerank", "score"]),
    ],
)
def test_what_an_instance_answers(params: dict[str, str], tasks: list[str]) -> None:
    options = LLAMA.parse(spec(infer_params=params))
    assert [task.value for task in options.tasks] == [*tasks, "tokenize", "detokenize"]
    assert options.values.get("chat_template") is None
    assert options.wire == "llama_cpp"


def test_layers_for_a_gpu_that_the_instance_has_not_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    params = {"n_gpu_layers": "-1"}
    assert "--gpus_per_worker" in LLAMA.parse(spec(infer_params=params)).warnings[0]
    assert LLAMA.parse(spec(infer_params=params, gpus_per_worker=1)).warnings == ()
    params = {"n_gpu_layers": "0"}
    assert "not used" in LLAMA.parse(spec(infer_params=params, gpus_per_worker=1)).warnings[0]
    assert LLAMA.parse(spec(gpus_per_worker=1)).warnings == ()
    assert LLAMA.parse(spec()).warnings == ()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("n_gpu_layers", "many", "whole number"),
        ("n_gpu_layers", "-2", "at least -1"),
        ("n_ctx", "99999999999", "at most"),
        ("n_batch", "0", "at least 1"),
        ("n_threads", "0", "at least 1"),
        ("tensor_split", "0,0", "proportions"),
        ("tensor_split", "1,,1", "must be a number"),
        ("rope_freq_base", "nan", "must be a number"),
        ("verbose", "maybe", "true or false"),
        ("type_k", "q9", "q8_0"),
        ("pooling_type", "5", "mean"),
        ("vocab_only", "true", "answers nothing"),
        ("logits_all", "perhaps", "true or false"),
        ("chat_template", "llama-2", "Jinja"),
        ("lora_path", "", "empty"),
        ("mmproj", "", "empty"),
        ("lora_scale", "1,x", "must be a number"),
        ("draft_max", "8", "needs model_draft"),
        ("draft_p_min", "-1", "at least 0"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, text: str, said: str) -> None:
    error = refusal(**{name: text})
    assert error.param == name
    assert name in error.message
    assert said in error.message


def test_parameters_of_the_older_tool_have_no_effect_and_that_is_said() -> None:
    older = {"vocab_only": "false", "logits_all": "False", "pooling_type": "0"}
    options = LLAMA.parse(spec(infer_params=older))
    assert options.values == values()
    assert [warning.partition(" has no effect: ")[0] for warning in options.warnings] == list(older)


def test_embeddings_need_a_vector_of_the_whole_text() -> None:
    assert refusal(embedding="true", pooling_type="0").param == "pooling_type"


def test_a_context_that_overflows_with_all_slots_is_refused() -> None:
    with pytest.raises(InvalidInput, match="each of 256 slots"):
        LLAMA.parse(spec(worker_concurrency=256, infer_params={"n_ctx": "10000000"}))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("n_gpu_layer", "Did you mean n_gpu_layers?"),
        ("backend.n_ctx", "Did you mean n_ctx?"),
        ("chat_format", "Use chat_template; without it the template in the model's own file is used."),
        ("n_parallel", "Use --worker_concurrency."),
        ("draft_model", "Use model_draft."),
        ("rerank", "Use reranking."),
    ],
)
def test_an_unknown_or_bygone_parameter_is_refused_with_what_to_use(name: str, hint: str | None) -> None:
    error = refusal(**{name: "1"})
    assert error.param == name
    assert error.hint
    assert hint is None or error.hint == hint


def test_no_name_is_both_a_parameter_and_elsewhere() -> None:
    assert not PARAMETERS.keys() & ELSEWHERE.keys()


def test_command_keeps_the_token_out_of_the_arguments() -> None:
    options = LLAMA.parse(spec(worker_concurrency=3, infer_params={"n_ctx": "512", "lora_path": "/a.gguf"}))
    launch = LLAMA.command(options, "127.0.0.1", 12345, "secret-token")
    assert "secret-token" not in " ".join(launch.argv)
    handed = json.loads(launch.env[OPTIONS_VARIABLE])
    assert (handed["token"], handed["port"], handed["slots"]) == ("secret-token", 12345, 3)
    assert handed["values"]["n_ctx"] == 512
    assert (launch.ready_path, json.loads(launch.ready_body)["max_tokens"]) == ("/v1/completions", 1)


@pytest.mark.parametrize(
    ("param", "path", "body"),
    [
        ("embedding", "/v1/embeddings", {"input": "a"}),
        ("reranking", "/v1/rerank", {"query": "a", "documents": ["a"]}),
    ],
)
def test_an_instance_is_ready_when_it_does_what_it_is_for(param: str, path: str, body: dict[str, Any]) -> None:
    launch = LLAMA.command(LLAMA.parse(spec(infer_params={param: "true"})), "127.0.0.1", 1, "t")
    assert (launch.ready_path, json.loads(launch.ready_body)) == (path, body)


def test_another_environments_python_runs_the_host_with_our_folder_behind_its_own_packages() -> None:
    options = replace(LLAMA.parse(spec()), python="/engines/llama_cpp/bin/python")
    argv = LLAMA.command(options, "127.0.0.1", 1, "t").argv
    assert argv[0] == "/engines/llama_cpp/bin/python"
    assert argv[-1] == "byzerllm.engines.host.llama_cpp"
    assert (Path(argv[-2]) / "byzerllm").is_dir()
    assert argv[1:3] == ("-I", "-c")
    assert "sys.path.append" in argv[3]
