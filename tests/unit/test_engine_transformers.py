"""The engines transformers and deepspeed: parameters, kinds of models, launch, log lines. Nothing is started."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripts import tiny_hf

from byzerllm.engines import engine, hf_folder, hf_parameters
from byzerllm.engines import transformers as hf
from byzerllm.engines.base import EngineOptions, Memory
from byzerllm.engines.hf_folder import Kind
from byzerllm.engines.transformers import ALIASES, GONE, Transformers
from byzerllm.errors import EngineMissing, InvalidInput
from byzerllm.spec import DeploymentSpec
from byzerllm.wire.base import Task

KINDS: dict[Kind, tuple[dict[str, Any], Task]] = {
    Kind.CAUSAL_LM: ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, Task.CHAT),
    Kind.MULTIMODAL_CHAT: (
        {
            "model_type": "llava",
            "architectures": ["LlavaForConditionalGeneration"],
            "vision_config": {"hidden_size": 32},
        },
        Task.CHAT,
    ),
    Kind.EMBEDDING: ({"model_type": "bert", "architectures": ["BertModel"]}, Task.EMBEDDING),
    Kind.RERANKER: ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, Task.RERANK),
    Kind.TRANSCRIPTION: (
        {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]},
        Task.TRANSCRIPTION,
    ),
    Kind.SPEECH: ({"model_type": "vits", "architectures": ["VitsModel"]}, Task.SPEECH),
}


@pytest.fixture
def folders(tmp_path: Path) -> dict[Kind, Path]:
    """A folder of each kind, with its config.json only."""
    found = {}
    for kind, (config, _) in KINDS.items():
        found[kind] = tmp_path / kind.name
        found[kind].mkdir()
        (found[kind] / "config.json").write_text(json.dumps(config))
    found[Kind.IMAGE] = tmp_path / "image"
    found[Kind.IMAGE].mkdir()
    (found[Kind.IMAGE] / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A whole model."""
    tiny_hf.write(tmp_path / "model")
    return tmp_path / "model"


def parse(path: Path | str, kind: str = "custom/auto", name: str = "transformers", **more: Any) -> EngineOptions:
    spec = DeploymentSpec(
        name="m", pretrained_model_type=kind, infer_backend=name, model_path=str(path), **{"num_workers": 2, **more}
    )
    return engine(name).parse(spec)


@pytest.mark.parametrize("kind", [*KINDS, Kind.IMAGE])
def test_what_a_model_does_is_read_from_its_folder(kind: Kind, folders: dict[Kind, Path]) -> None:
    options = parse(folders[kind])
    assert options.task is (Task.IMAGE if kind is Kind.IMAGE else KINDS[kind][1])
    assert options.values["kind"] == kind.value


@pytest.mark.parametrize("name", ALIASES)
@pytest.mark.parametrize("prefix", ["custom/", ""])
def test_an_older_type_is_for_one_kind_of_model(name: str, prefix: str, folders: dict[Kind, Path]) -> None:
    wanted = ALIASES[name]
    assert parse(folders[wanted], prefix + name).values["kind"] == wanted.value
    other = Kind.EMBEDDING if wanted is not Kind.EMBEDDING else Kind.CAUSAL_LM
    with pytest.raises(InvalidInput, match=f"{name} is for a model of the kind {wanted.value}.*{other.value}"):
        parse(folders[other], prefix + name)


@pytest.mark.parametrize("name", GONE)
def test_a_type_that_is_gone_says_what_to_use(name: str, model: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(model, f"custom/{name}")
    assert caught.value.hint == GONE[name]


def test_an_unknown_type_is_refused_with_the_nearest(model: Path) -> None:
    with pytest.raises(InvalidInput, match="Did you mean baichuan"):
        parse(model, "custom/baichuan2")


@pytest.mark.parametrize("prefix", ["backend.", ""])
@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("dtype", "bf16", "bfloat16"),
        ("torch_dtype", "torch.float16", "float16"),
        ("max-model-len", "512", 512),
        ("trust_remote_code", "True", True),
        ("quatization", "4", 4),
        ("quantization", "true", 8),
        ("lora_path", "/adapters/a", "/adapters/a"),
    ],
)
def test_parameters_have_types(prefix: str, name: str, text: str, value: Any, model: Path) -> None:
    arguments = parse(model, infer_params={prefix + name: text}).values["arguments"]
    assert list(arguments.values()) == [value]


def test_a_threshold_goes_with_eight_bits(model: Path) -> None:
    given = {"backend.quantization": "8", "backend.llm_int8_threshold": "5.5"}
    assert parse(model, infer_params=given).values["arguments"] == {"quantization": 8, "llm_int8_threshold": 5.5}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"backend.dtype": "int3"}, "must be one of"),
        ({"backend.quantization": "5"}, "must be 4 or 8"),
        ({"backend.max_model_len": "0"}, "at least 8"),
        ({"backend.max_model_lenn": "512"}, "Did you mean backend.max_model_len"),
        ({"max_model_lenn": "512"}, "Did you mean max_model_len"),
        ({"backend.dtype": "auto", "dtype": "auto"}, "given twice"),
        ({"backend.lora_path": ""}, "is empty"),
        ({"backend.device": "cuda"}, "needs --gpus_per_worker"),
        ({"backend.llm_int8_threshold": "5"}, "has no meaning without backend.quantization=8"),
        ({"llm_int8_threshold": "5", "quantization": "4"}, "Add backend.quantization=8, or leave it out"),
        ({"backend.dtype": "int3"}, "must be one of auto, bfloat16, .* backend.dtype: data type of the weights"),
    ],
)
def test_a_wrong_parameter_is_refused(params: dict[str, str], message: str, model: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse(model, infer_params=params)


@pytest.mark.parametrize("kind", [*KINDS, Kind.IMAGE])
def test_a_parameter_without_meaning_for_the_kind_is_refused(kind: Kind, folders: dict[Kind, Path]) -> None:
    given = {
        "dtype": "float32", "device": "cpu", "max_model_len": "64", "trust_remote_code": "true", "quantization": "8",
        "chat_template": "{{ messages }}", "attn_implementation": "eager", "lora_path": "/l", "llm_int8_threshold": "6",
    }  # fmt: skip
    assert set(given) == set(hf_parameters.TRANSFORMERS)
    known = hf_parameters.OF_KIND[kind]
    for name, text in given.items():
        if name in known:
            beside = {"quantization": "8"} if name == "llm_int8_threshold" else {}
            assert name in parse(folders[kind], infer_params={**beside, name: text}).values["arguments"]
            continue
        with pytest.raises(InvalidInput, match=rf"backend\.{name} has no meaning.*{kind.value}") as caught:
            parse(folders[kind], infer_params={name: text})
        assert caught.value.param == f"backend.{name}"


def test_only_models_that_chat_take_a_template_and_an_adapter() -> None:
    for name in ("chat_template", "lora_path"):
        takes = {kind for kind, known in hf_parameters.OF_KIND.items() if name in known}
        assert takes == {Kind.CAUSAL_LM, Kind.MULTIMODAL_CHAT}


def test_parameters_without_use_are_said_to_be_so(model: Path) -> None:
    options = parse(model, infer_params={"backend.use_cache": "true", "longContextMode": "true"})
    assert [warning.partition(" ")[0] for warning in options.warnings] == ["backend.use_cache", "longContextMode"]
    assert options.values["arguments"] == {}


def test_slots_depend_on_the_kind_unless_they_are_given(folders: dict[Kind, Path]) -> None:
    assert parse(folders[Kind.CAUSAL_LM]).slots == 16
    assert parse(folders[Kind.EMBEDDING]).slots == 4
    assert parse(folders[Kind.MULTIMODAL_CHAT]).slots == 16
    assert parse(folders[Kind.EMBEDDING], worker_concurrency=7).slots == 7
    with pytest.raises(InvalidInput, match="1024"):
        parse(folders[Kind.EMBEDDING], worker_concurrency=2000)


def test_a_model_path_is_needed() -> None:
    with pytest.raises(InvalidInput, match="--model_path is missing"):
        parse("")


def test_the_needed_memory_is_that_of_weights_and_context(model: Path) -> None:
    needs = engine("transformers").check(parse(model))
    assert needs is not None
    weights = needs.weights
    assert weights == 164_160 * 4
    assert needs.cache == 2048 * 2 * 2 * 32 * 4
    half = engine("transformers").check(parse(model, infer_params={"dtype": "float16", "max_model_len": "1024"}))
    assert half is not None
    assert (half.weights, half.cache) == (weights // 2, needs.cache // 4)


def test_gpus_that_a_kind_of_model_leaves_idle_are_told(folders: dict[Kind, Path]) -> None:
    for kind, folder in folders.items():
        divided = kind in (Kind.CAUSAL_LM, Kind.MULTIMODAL_CHAT)
        warnings = parse(folder, gpus_per_worker=2).warnings
        assert [f"kind {kind.value} uses one GPU" in warning for warning in warnings] == ([] if divided else [True])
        assert parse(folder, gpus_per_worker=1).warnings == ()


def test_text_models_are_divided_among_gpus(model: Path) -> None:
    options = parse(model, gpus_per_worker=2)
    assert engine("transformers").check(options) == Memory(
        weights=(needs := hf.memory_of(hf_folder.read(str(model)), {}, on_gpu=True)).weights,
        cache=needs.cache,
        on_gpu=True,
        shares=2,
    )


@pytest.mark.parametrize(
    ("saved", "on_gpu", "held"),
    [
        ("float32", True, "float16"),
        ("bfloat16", True, "bfloat16"),
        ("bfloat16", False, "float32"),
        ("float16", False, "float32"),
    ],
)
def test_images_are_made_in_half_the_width_on_a_gpu(model: Path, saved: str, on_gpu: bool, held: str) -> None:
    folder = replace(hf_folder.read(str(model)), kind=Kind.IMAGE, dtype=saved)
    assert hf.dtype_of(folder, {}, on_gpu=on_gpu) == held
    assert hf.dtype_of(folder, {"dtype": "float32"}, on_gpu=on_gpu) == "float32"


@pytest.mark.parametrize(("params", "package"), [({"quantization": "4"}, "bitsandbytes"), ({"lora_path": "/"}, "peft")])
def test_a_package_that_is_missing_is_named(params: dict[str, str], package: str, model: Path) -> None:
    with pytest.raises(EngineMissing, match=package) as caught:
        engine("transformers").check(parse(model, infer_params=params))
    assert f"-m pip install {package}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_model_len": "4096"}, "more than the 2048"),
        ({"chat_template": "/no/such.jinja"}, "/no/such.jinja does not exist"),
    ],
)
def test_what_does_not_suit_the_model_is_refused(params: dict[str, str], message: str, model: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        engine("transformers").check(parse(model, infer_params=params))


def test_code_of_the_models_own_must_be_trusted(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "x.Y"}}))
    with pytest.raises(InvalidInput, match=r"trust_remote_code=true"):
        engine("transformers").check(parse(model))
    engine("transformers").check(parse(model, infer_params={"trust_remote_code": "true"}))


def test_the_weights_of_the_older_adapter_layout_are_looked_at(tmp_path: Path) -> None:
    tiny_hf.write(tmp_path / "adapter" / "pretrained_model")
    options = parse(tmp_path / "adapter")
    assert options.task is Task.CHAT
    assert engine("transformers").check(options) is not None


def test_options_and_token_travel_in_one_variable(folders: dict[Kind, Path]) -> None:
    options = parse(folders[Kind.RERANKER], cpus_per_worker=3, gpus_per_worker=0.5, infer_params={"dtype": "float32"})
    launch = Transformers().command(options, "127.0.0.1", 7000, "secret")
    assert "secret" not in " ".join(launch.argv)
    handed = json.loads(launch.env["BYZERLLM_ENGINE"])
    assert handed["token"] == "secret"
    assert (handed["task"], handed["port"], handed["threads"], handed["sharers"]) == ("reranker", 7000, 3, 2)
    assert handed["gpus"] == 0.5
    assert handed["values"] == {"dtype": "float32"}
    assert launch.ready_path == "/v1/rerank"
    assert launch.env["HF_HUB_OFFLINE"] == "1"


def test_the_log_says_what_is_done_and_why_it_ended() -> None:
    found = Transformers()
    assert found.phase("byzerllm: phase: loading weights 40%") == "loading weights 40%"
    assert found.phase("something else") is None
    tail = "byzerllm: phase: loading weights\nbyzerllm: cause: out of memory: 3 tokens\n"
    assert found.cause(tail) == "out of memory: 3 tokens"
    assert found.cause("nothing") is None


# DeepSpeed


def deepspeed(path: Path, **more: Any) -> EngineOptions:
    return parse(path, name="deepspeed", **more)


def test_deepspeed_says_that_vllm_is_better(model: Path) -> None:
    assert "vllm is the better choice" in deepspeed(model).warnings[0]


@pytest.mark.parametrize(("gpus", "ranks"), [(0, 1), (0.5, 1), (1, 1), (2, 2)])
def test_there_are_as_many_ranks_as_whole_gpus(gpus: float, ranks: int, model: Path) -> None:
    assert deepspeed(model, gpus_per_worker=gpus).values["arguments"]["tp_size"] == ranks


def test_without_gpus_the_ranks_are_processes(model: Path) -> None:
    options = deepspeed(model, cpus_per_worker=4, infer_params={"backend.tp_size": "2"})
    assert (options.values["threads"], options.values["sharers"]) == (2, 4)
    with pytest.raises(InvalidInput, match="does not divide the model's 1 key/value heads"):
        engine("deepspeed").check(options)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"gpus_per_worker": 2, "infer_params": {"backend.tp_size": "4"}}, "contradicts --gpus_per_worker 2"),
        ({"infer_params": {"backend.replace_with_kernel_inject": "true"}}, "needs a GPU"),
        ({"gpus_per_worker": 2, "infer_params": {"backend.kernel_inject": "true"}}, "one GPU a worker"),
        ({"infer_params": {"backend.quantization": "4"}}, "Unknown deepspeed parameter"),
    ],
)
def test_what_deepspeed_cannot_do_is_refused(more: dict[str, Any], message: str, model: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        deepspeed(model, **more)


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not Kind.CAUSAL_LM])
def test_deepspeed_is_for_text_only(kind: Kind, folders: dict[Kind, Path]) -> None:
    with pytest.raises(InvalidInput, match=f"{kind.value}.*--infer_backend transformers"):
        deepspeed(folders[kind])


def test_the_ranks_of_deepspeed_share_the_weights_of_a_gpu(tmp_path: Path) -> None:
    from scripts.tiny_gguf import Shape

    tiny_hf.write(tmp_path / "m", shape=Shape(kv_heads=2))
    needs = engine("deepspeed").check(deepspeed(tmp_path / "m", gpus_per_worker=2))
    assert needs is not None
    assert (needs.shares, needs.on_gpu) == (2, True)


@pytest.mark.parametrize(("dtype", "wholes"), [("float32", 1), ("bfloat16", 2)])
def test_ranks_that_convert_the_weights_hold_all_of_them(dtype: str, wholes: int, tmp_path: Path) -> None:
    from scripts.tiny_gguf import Shape

    tiny_hf.write(tmp_path / "m", shape=Shape(kv_heads=2))
    params = {"dtype": dtype}
    alone = engine("transformers").check(parse(tmp_path / "m", infer_params=params))
    needs = engine("deepspeed").check(deepspeed(tmp_path / "m", infer_params={**params, "tp_size": "2"}))
    assert needs is not None
    assert alone is not None
    assert (needs.weights, needs.shares) == (alone.weights * wholes, 1)


@pytest.mark.parametrize(
    ("dtype", "ranks", "mapped"), [("float32", 1, True), ("float32", 2, False), ("bfloat16", 1, False)]
)
def test_workers_of_one_rank_share_the_file(dtype: str, ranks: int, mapped: bool, tmp_path: Path) -> None:
    from scripts.tiny_gguf import Shape

    tiny_hf.write(tmp_path / "m", shape=Shape(kv_heads=2))
    params = {"dtype": dtype, "tp_size": str(ranks)}
    needs = engine("deepspeed").check(deepspeed(tmp_path / "m", infer_params=params))
    assert needs is not None
    assert needs.mapped is mapped


@pytest.mark.parametrize(
    ("dtype", "gpus", "mapped"), [("float32", 0, True), ("bfloat16", 0, False), ("float32", 1, False)]
)
def test_workers_on_the_cpu_share_weights_that_are_as_saved(
    dtype: str, gpus: float, mapped: bool, tmp_path: Path
) -> None:
    tiny_hf.write(tmp_path / "m")
    needs = engine("transformers").check(
        parse(tmp_path / "m", gpus_per_worker=gpus, infer_params={"backend.dtype": dtype})
    )
    assert needs is not None
    assert needs.mapped is mapped


@pytest.mark.parametrize(("dtype", "wholes"), [("float32", 0), ("bfloat16", 2)])
def test_ranks_on_gpus_hold_them_in_the_machines_memory_first(dtype: str, wholes: int, tmp_path: Path) -> None:
    from scripts.tiny_gguf import Shape

    tiny_hf.write(tmp_path / "m", shape=Shape(kv_heads=2))
    needs = engine("deepspeed").check(deepspeed(tmp_path / "m", gpus_per_worker=2, infer_params={"dtype": dtype}))
    assert needs is not None
    assert needs.host == needs.weights * wholes


def test_every_alias_of_a_parameter_is_one() -> None:
    known = {*hf_parameters.TRANSFORMERS, *hf_parameters.DEEPSPEED}
    assert set(hf_parameters.ALIASES.values()) <= known
    assert not set(hf_parameters.ALIASES) & known


@pytest.mark.parametrize("name", ["transformers", "deepspeed"])
def test_a_name_on_the_hub_is_refused_with_the_command_that_downloads_it(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name} reads folders only") as refused:
        engine(name).check(parse("owner/model", name=name))
    assert "hf download owner/model" in (refused.value.hint or "")
