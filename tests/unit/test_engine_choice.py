"""The engine that is chosen where none was named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from byzerllm.engines.choice import choose
from byzerllm.errors import InvalidInput
from byzerllm.spec import DeploymentSpec


def folder(path: Path, *names: str, **config: object) -> Path:
    path.mkdir()
    for name in names:
        (path / name).touch()
    if config:
        (path / "config.json").write_text(json.dumps(config))
    return path


def choice(path: Path | str, gpus: float = 0, kind: str = "custom/auto") -> tuple[str, str]:
    spec = DeploymentSpec(name="m", pretrained_model_type=kind, model_path=str(path), gpus_per_worker=gpus)
    return choose(spec)


def test_gguf_is_for_llama_cpp(tmp_path: Path) -> None:
    assert choice("/models/m.GGUF") == ("llama_cpp", "a GGUF file")
    assert choice(folder(tmp_path / "a", "m.gguf"), gpus=1)[0] == "llama_cpp"
    assert choice(folder(tmp_path / "b", "m.gguf", model_type="llama"))[0] == "llama_cpp"


def test_a_folder_with_both_kinds_of_weights_is_a_model_folder(tmp_path: Path) -> None:
    both = folder(tmp_path / "a", "m.gguf", "model.safetensors", model_type="llama", architectures=["LlamaForCausalLM"])
    assert choice(both) == ("transformers", "a model folder, and --gpus_per_worker is 0")


def test_a_model_folder_goes_to_vllm_where_its_workers_have_gpus(tmp_path: Path) -> None:
    chat = folder(tmp_path / "a", model_type="llama", architectures=["LlamaForCausalLM"])
    assert choice(chat, gpus=0.5) == ("vllm", "a model folder, and GPUs for its workers")
    speech = folder(tmp_path / "b", model_type="vits", architectures=["VitsModel"])
    assert choice(speech, gpus=1) == ("transformers", "a model folder for text to speech")


def test_the_older_types_fix_a_task_of_transformers(tmp_path: Path) -> None:
    model = folder(tmp_path / "a", model_type="bert", architectures=["BertModel"])
    assert choice(model, gpus=1, kind="custom/bge") == ("transformers", "the type custom/bge")


def test_a_name_on_the_hub() -> None:
    assert choice("owner/model", gpus=1) == ("vllm", "a name on the Hugging Face hub, and GPUs for its workers")


@pytest.mark.parametrize(("gpus", "kind"), [(0, "custom/auto"), (1, "custom/bge")])
def test_a_name_on_the_hub_for_an_engine_that_reads_folders_says_what_to_do(gpus: float, kind: str) -> None:
    with pytest.raises(InvalidInput, match="transformers reads folders only") as refused:
        choice("owner/model", gpus, kind)
    assert refused.value.hint is not None
    assert "hf download owner/model" in refused.value.hint
    assert "--infer_backend vllm" in refused.value.hint


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--model_path is missing"):
        choice("")
    with pytest.raises(InvalidInput, match=r"/gone does not exist"):
        choice(tmp_path / "gone")
    with pytest.raises(InvalidInput, match=r"neither a \.gguf file nor a model folder"):
        choice(folder(tmp_path / "empty"))


def test_a_type_that_nobody_has_is_told_before_a_missing_path() -> None:
    with pytest.raises(InvalidInput, match="Unknown --pretrained_model_type 'opnai'"):
        choice("", kind="opnai")
    with pytest.raises(InvalidInput, match="--model_path is missing"):
        choice("", kind="bge")
