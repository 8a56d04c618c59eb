"""The engine funasr: types, parameters, the files of its models, launch. Nothing is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from byzerllm.control.prepare import engine_plan
from byzerllm.engines import engine
from byzerllm.engines.base import EngineOptions, Memory
from byzerllm.engines.choice import choose, is_open
from byzerllm.engines.funasr import DEFAULTS, PARAMETERS
from byzerllm.engines.funasr_folder import is_sensevoice
from byzerllm.errors import InvalidInput
from byzerllm.spec import DeploymentSpec
from byzerllm.wire.base import Task

NAMES = {
    "init_param": "model.pt",
    "config": "config.yaml",
    "tokenizer_conf": {"bpemodel": "words.bpe.model"},
    "frontend_conf": {"cmvn_file": "am.mvn"},
}
WEIGHTS = 1000
HUB_HINT = "Run: hf download {} --local-dir FOLDER"


def write(folder: Path, cls: str, names: dict[str, Any] | None, *files: str) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"# c\nmodel: {cls}\nmodel_conf: {{sos: 1}}\n")
    (folder / "model.pt").write_bytes(bytes(WEIGHTS))
    for name in files:
        (folder / name).write_text("x")
    if names is not None:
        (folder / "configuration.json").write_text(json.dumps({"file_path_metas": names}))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as it is published."""
    return write(tmp_path / "sensevoice", "SenseVoiceSmall", NAMES, "am.mvn", "words.bpe.model")


@pytest.fixture
def vad(tmp_path: Path) -> Path:
    names = {name: file for name, file in NAMES.items() if name != "tokenizer_conf"}
    return write(tmp_path / "vad", "FsmnVADStreaming", names, "am.mvn")


def spec(path: Path | str, kind: str = "custom/sensevoice", **more: Any) -> DeploymentSpec:
    return DeploymentSpec(
        name="m", pretrained_model_type=kind, model_path=str(path), **{"infer_backend": "funasr", **more}
    )


def parse(path: Path | str, params: dict[str, str] | None = None, *, gpus: float = 0, **more: Any) -> EngineOptions:
    return engine("funasr").parse(spec(path, gpus_per_worker=gpus, infer_params=params or {}, **more))


def check(path: Path | str, gpus: float = 0, **params: str) -> Memory | None:
    return engine("funasr").check(parse(path, params, gpus=gpus))


# Which engine


@pytest.mark.parametrize("named", ["", "transformers"])
@pytest.mark.parametrize("kind", ["custom/sensevoice", "sensevoice"])
def test_the_older_type_is_run_by_it_also_where_the_older_backend_is_named(named: str, kind: str, model: Path) -> None:
    wanted = spec(model, kind, infer_backend=named)
    assert is_open(wanted)
    assert choose(wanted) == ("funasr", f"the type {kind}")


@pytest.mark.parametrize("named", ["vllm", "funasr", "deepspeed"])
def test_any_other_backend_that_is_named_stays(named: str, model: Path) -> None:
    assert not is_open(spec(model, infer_backend=named))
    assert not is_open(spec(model, "custom/whisper", infer_backend="transformers"))


@pytest.mark.parametrize("gpus", [0, 1])
def test_the_folder_is_recognised(gpus: float, model: Path, vad: Path) -> None:
    assert choose(spec(model, "custom/auto", infer_backend="", gpus_per_worker=gpus))[0] == "funasr"
    assert not is_sensevoice(str(vad))
    with pytest.raises(InvalidInput, match=r"neither a \.gguf file nor a model folder"):
        choose(spec(vad, "custom/auto", infer_backend=""))


@pytest.mark.parametrize("named", ["vllm", "llama_cpp", "deepspeed"])
def test_another_engine_that_is_named_does_not_run_it(named: str, model: Path) -> None:
    with pytest.raises(InvalidInput, match=f"is run by funasr, not by {named}") as refused:
        engine_plan(spec(model, infer_backend=named), {})
    assert refused.value.hint == "Leave --infer_backend out."


def test_transformers_says_whose_the_folder_is(model: Path) -> None:
    transformers = engine("transformers")
    with pytest.raises(InvalidInput, match="holds a SenseVoice model") as refused:
        transformers.check(transformers.parse(spec(model, "custom/auto")))
    assert refused.value.hint == "Use --infer_backend funasr."


def test_it_runs_nothing_else(model: Path) -> None:
    with pytest.raises(InvalidInput, match="'custom/whisper' cannot be run by funasr"):
        parse(model, kind="custom/whisper")
    with pytest.raises(InvalidInput, match="--model_path is missing"):
        parse("")


# Parameters


@pytest.mark.parametrize("prefix", ["", "backend."])
def test_parameters_have_types(prefix: str, model: Path, vad: Path) -> None:
    given = {
        "vad_model": str(vad), "vad_kwargs.max_single_segment_time": "30000", "vad_kwargs.speech_noise_thres": "0.5",
        "vad_kwargs.decibel_thres": "-50", "use_itn": "False", "merge_vad": "false", "merge_length_s": "20",
        "batch_size_s": "30", "device": "cpu",
    }  # fmt: skip
    options = parse(model, {prefix + name: text for name, text in given.items()})
    assert options.values["arguments"] == {
        "vad_model": str(vad), "vad_kwargs.max_single_segment_time": 30000, "vad_kwargs.speech_noise_thres": 0.5,
        "vad_kwargs.decibel_thres": -50, "use_itn": False, "merge_vad": False, "merge_length_s": 20,
        "batch_size_s": 30, "device": "cpu",
    }  # fmt: skip


def test_what_is_not_given_is_as_in_the_older_tool(model: Path) -> None:
    assert parse(model).values["arguments"] == DEFAULTS
    assert all(PARAMETERS[name].default == str(value).lower() for name, value in DEFAULTS.items())


def test_the_code_of_a_folder_is_never_run(model: Path) -> None:
    options = parse(model, {"trust_remote_code": "true", "backend.remote_code": "./model.py"})
    assert options.values["arguments"] == DEFAULTS
    assert [warning.split()[0] for warning in options.warnings] == ["trust_remote_code", "backend.remote_code"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"vad_modle": "/v"}, "Did you mean vad_model"),
        ({"backend.vad_kwargs.max_singel_segment_time": "1"}, r"Did you mean backend\.vad_kwargs\.max_single_segment"),
        ({"vad_kwargs.max_single_segment_time": "1000"}, "has no meaning without vad_model"),
        ({"merge_vad": "true"}, "has no meaning without vad_model"),
        ({"vad_model": "/v", "vad_kwargs.max_single_segment_time": "long"}, "vad_kwargs.max_single_segment_time"),
        ({"use_itn": "perhaps"}, "use_itn"),
        ({"device": "npu"}, "must be one of cpu, cuda, mps"),
        ({"device": "cuda:0"}, "needs --gpus_per_worker"),
    ],
)
def test_a_wrong_parameter_is_refused(params: dict[str, str], message: str, model: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse(model, params)


# Files


def test_what_a_worker_needs_is_told_by_the_weights(model: Path, vad: Path) -> None:
    assert check(model) == Memory(3 * WEIGHTS, 0, on_gpu=False)
    assert check(model, vad_model=str(vad)) == Memory(6 * WEIGHTS, 0, on_gpu=False)
    assert check(model, gpus=1) == Memory(WEIGHTS, 0, on_gpu=True, host=3 * WEIGHTS)
    assert check(model, gpus=1, device="cpu") == Memory(3 * WEIGHTS, 0, on_gpu=False)


@pytest.mark.parametrize("name", ["model.pt", "config.yaml", "am.mvn", "words.bpe.model"])
def test_a_missing_file_is_named(name: str, model: Path) -> None:
    (model / name).unlink()
    with pytest.raises(InvalidInput, match=f"has no {name}") as refused:
        check(model)
    assert refused.value.param == "model_path"


def test_without_an_index_the_names_are_fixed(tmp_path: Path) -> None:
    model = write(tmp_path / "a", "SenseVoiceSmall", None, "am.mvn", "bpe.model")
    assert check(model) == Memory(3 * WEIGHTS, 0, on_gpu=False)
    (model / "bpe.model").unlink()
    with pytest.raises(InvalidInput, match=r"has no bpe\.model"):
        check(model)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.pt", b"PK\x03\x04cut short", "the download was cut short"),
        ("model.pt", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("config.yaml", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("config.yaml", b"encoder_conf:\n  model: SenseVoiceSmall", r"funasr's class \(none\), not SenseVoiceSmall"),
        ("config.yaml", b"a: 1\r\nmodel: 'Paraformer'\r\n", "funasr's class Paraformer, not SenseVoiceSmall"),
        ("configuration.json", b"{}", "has no file_path_metas"),
        ("configuration.json", b'{"file_path_metas": {"config": "config.yaml"}}', "names no init_param"),
        ("configuration.json", b"{", "is no JSON"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: bytes, message: str, model: Path) -> None:
    (model / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as refused:
        check(model)
    assert name in refused.value.message or "SenseVoiceSmall" in refused.value.message


@pytest.mark.parametrize("name", ["iic/SenseVoiceSmall", "SenseVoiceSmall"])
def test_a_model_on_a_hub_is_not_fetched(name: str) -> None:
    with pytest.raises(InvalidInput, match="is no folder here but looks like a name on a hub") as refused:
        check(name)
    assert str(refused.value.hint).startswith(HUB_HINT.format("FunAudioLLM/SenseVoiceSmall"))


def test_the_detector_of_speech_is_a_folder_too(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="vad_model=fsmn-vad is no folder here") as refused:
        check(model, vad_model="fsmn-vad")
    assert str(refused.value.hint).startswith(HUB_HINT.format("funasr/fsmn-vad"))
    assert refused.value.param == "vad_model"
    for path, message in ((model, "not FsmnVADStreaming"), (tmp_path / "gone", "gone does not exist")):
        with pytest.raises(InvalidInput, match=message) as refused:
            check(model, vad_model=str(path))
        assert refused.value.param == "vad_model"


def test_the_launch_hands_all_to_the_host(model: Path) -> None:
    options = parse(model, kind="custom/auto")
    assert (options.tasks, options.slots) == ((Task.TRANSCRIPTION,), 4)
    launch = engine("funasr").command(options, "127.0.0.1", 1, "t")
    told = json.loads(launch.env["BYZERLLM_ENGINE"])
    assert (told["engine"], told["task"], told["values"]) == ("funasr", "sensevoice", DEFAULTS)
    assert launch.ready_path == "/ready"
