from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.unit.hf_files import LLAMA, configure, whole_folder, write_json, write_tensors

from byzerllm.engines import hf_folder
from byzerllm.engines.hf_cache import Cache, read_cache
from byzerllm.engines.hf_folder import Kind
from byzerllm.errors import InvalidInput

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return whole_folder(tmp_path)


def refusal(path: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        hf_folder.read(str(path))
    assert caught.value.param == "model_path"
    return str(caught.value)


def test_a_whole_folder(folder: Path) -> None:
    found = hf_folder.read(str(folder))
    assert found.kind is Kind.CAUSAL_LM
    assert found.architectures == ("LlamaForCausalLM",)
    assert (found.model_type, found.dtype, found.context_length) == ("llama", "bfloat16", 2048)
    assert (found.weights, found.weight_bytes(), found.weight_bytes(4)) == (1000, 1000, 2000)
    assert found.cache == Cache(2, 0, 0, 64)
    assert found.cache_bytes(10) == 10 * 2 * 64 * 2
    assert found.cache_bytes(10, width=1) == 10 * 2 * 64
    assert (found.chat_template, found.quantization, found.remote_code, found.labels) == (None, "", False, 0)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, Kind.CAUSAL_LM),
        ({"architectures": ["GPT2LMHeadModel"]}, Kind.CAUSAL_LM),
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, Kind.CAUSAL_LM),
        ({"architectures": ["ChatGLMModel"], "model_type": "chatglm"}, Kind.CAUSAL_LM),
        ({"architectures": [], "auto_map": {"AutoModelForCausalLM": "m.M"}}, Kind.CAUSAL_LM),
        ({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {"a": 1}}, Kind.MULTIMODAL_CHAT),
        ({"architectures": ["QWenLMHeadModel"], "visual": {"a": 1}}, Kind.MULTIMODAL_CHAT),
        ({"architectures": ["InternVLChatModel"], "vision_config": {"a": 1}}, Kind.MULTIMODAL_CHAT),
        ({"architectures": ["Qwen2AudioForConditionalGeneration"], "audio_config": {"a": 1}}, Kind.MULTIMODAL_CHAT),
        ({"architectures": ["Qwen2_5OmniModel"], "model_type": "qwen2_5_omni"}, Kind.MULTIMODAL_CHAT),
        ({"architectures": ["BertModel"], "model_type": "bert"}, Kind.EMBEDDING),
        ({"architectures": ["XLMRobertaForMaskedLM"]}, Kind.EMBEDDING),
        ({"architectures": ["T5EncoderModel"]}, Kind.EMBEDDING),
        ({"architectures": ["CLIPModel"], "model_type": "clip", "vision_config": {"a": 1}}, Kind.EMBEDDING),
        ({"architectures": ["XLMRobertaForSequenceClassification"]}, Kind.RERANKER),
        ({"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"}, Kind.TRANSCRIPTION),
        ({"architectures": ["Wav2Vec2ForCTC"]}, Kind.TRANSCRIPTION),
        ({"architectures": ["VitsModel"], "model_type": "vits"}, Kind.SPEECH),
        ({"architectures": ["SpeechT5ForTextToSpeech"]}, Kind.SPEECH),
    ],
)
def test_what_a_model_is(folder: Path, changes: dict[str, Any], kind: Kind) -> None:
    assert hf_folder.kind_of(configure(folder, **changes)) is kind
    assert hf_folder.read(str(folder)).kind is kind


def test_sentence_transformers_are_told_by_their_modules(folder: Path) -> None:
    write_json(folder / "modules.json", [])
    assert hf_folder.kind_of(str(folder)) is Kind.EMBEDDING
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 100})
    assert hf_folder.read(str(folder)).context_length == 100
    classifier = configure(folder, architectures=["BertForSequenceClassification"], id2label={"0": "a"})
    assert hf_folder.read(classifier).kind is Kind.RERANKER
    assert hf_folder.read(classifier).labels == 1


def test_a_classifier_that_does_not_say_its_classes_has_two(folder: Path) -> None:
    assert hf_folder.read(configure(folder, architectures=["BertForSequenceClassification"])).labels == 2


def test_older_sentence_transformers_have_their_encoder_below(folder: Path) -> None:
    write_json(folder / "modules.json", [])
    (folder / "model.safetensors").rename(folder / "weights.tmp")
    write_tensors(folder / "0_Transformer" / "model.safetensors", size=600)
    assert hf_folder.read(str(folder)).weights == 600


def test_a_pipeline_of_diffusers_adds_up_its_parts(tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet"], "vae": ["diffusers", "Vae"]}
    write_json(tmp_path / "model_index.json", {**index, "safety_checker": [None, None], "scheduler": ["d", "S"]})
    assert "no weights" in refusal(tmp_path)
    write_tensors(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", size=300)
    write_tensors(tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors", size=150)
    write_tensors(tmp_path / "vae" / "model.safetensors", size=40)
    write_tensors(tmp_path / "unused" / "model.safetensors", size=5000)
    found = hf_folder.read(str(tmp_path))
    assert (found.kind, found.weights, found.architectures) == (Kind.IMAGE, 340, ("StableDiffusionPipeline",))


def test_shards_are_added_up_and_each_is_looked_for(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    write_json(folder / "model.safetensors.index.json", {"weight_map": {f"w{n}": n for n in names}})
    assert "none of the 3 files" in refusal(folder)
    for name in names[:2]:
        write_tensors(folder / name)
    assert f"{folder / names[2]} of the 3 files" in refusal(folder)
    write_tensors(folder / names[2])
    write_tensors(folder / "consolidated.safetensors", size=9000)  # the same weights once more, which nobody loads
    assert hf_folder.read(str(folder)).weights == 3000


def test_safetensors_go_before_bin_and_adapters_do_not_count(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(bytes(5000))
    write_tensors(folder / "adapter_model.safetensors", size=77)
    assert hf_folder.read(str(folder)).weights == 1000
    (folder / "model.safetensors").unlink()
    assert hf_folder.read(str(folder)).weights == 5000
    (folder / "pytorch_model.bin").unlink()
    assert "no weights" in refusal(folder)


@pytest.mark.parametrize("cut", [0, 5, 60, -1])
def test_a_file_cut_short_is_refused(folder: Path, cut: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    assert f"{path} is" in refusal(folder)
    assert "cut short" in refusal(folder)


def test_a_bin_cut_short_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.pkl", bytes(500))
    assert hf_folder.read(str(folder)).weights == path.stat().st_size
    path.write_bytes(path.read_bytes()[:-30])
    assert f"{path} ends before" in refusal(folder)


def test_what_is_no_safetensors_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    for data in (
        b"\xff" * 100,
        struct.pack("<Q", 5) + b"[1,2]",
        struct.pack("<Q", 8) + b'{"a": 1}',
        b"<!DOCTYPE html><html>",
    ):
        path.write_bytes(data)
        assert f"{path} is no safetensors file" in refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json"])
def test_a_pointer_of_git_lfs_is_told(folder: Path, name: str) -> None:
    (folder / name).write_bytes(POINTER)
    assert f"{folder / name} is a Git LFS pointer" in refusal(folder)
    assert "git lfs pull" in refusal(folder)


def test_a_link_to_nothing_is_told(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "blobs" / "gone")
    assert f"{folder / 'model.safetensors'} is a link to a file that is not there" in refusal(folder)


def test_what_is_no_model_folder_is_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    assert "does not exist" in refusal(folder / "nothing")
    assert "is a file" in refusal(folder / "config.json")
    assert "no config.json" in refusal_of(tmp_path / "empty")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "m.gguf").write_bytes(b"GGUF")
    assert "--infer_backend llama_cpp" in refusal(tmp_path / "gguf")
    assert "--infer_backend llama_cpp" in refusal(tmp_path / "gguf" / "m.gguf")
    write_json(tmp_path / "lora" / "adapter_config.json", {"base_model_name_or_path": "Qwen/Qwen3-8B"})
    assert "LoRA adapter" in refusal(tmp_path / "lora")
    assert "Qwen/Qwen3-8B" in refusal(tmp_path / "lora")
    (folder / "config.json").write_text("{")
    assert f"{folder / 'config.json'} is no JSON" in refusal(folder)
    (folder / "config.json").write_text("[" * 100_000)
    assert f"{folder / 'config.json'} is no JSON" in refusal(folder)
    (folder / "config.json").write_text("[]")
    assert "no JSON object" in refusal(folder)
    for names in (None, 5):
        configure(folder, architectures=names)
        assert "names no architectures" in refusal(folder)
    assert hf_folder.kind_of(str(folder)) is None


def refusal_of(path: Path) -> str:
    path.mkdir()
    return refusal(path)


def test_a_model_of_text_needs_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in refusal(folder)
    assert hf_folder.read(str(folder), tokenizer=False).kind is Kind.CAUSAL_LM
    assert hf_folder.read(configure(folder, model_type="whisper")).kind is Kind.TRANSCRIPTION


def test_the_file_that_has_the_chat_template(folder: Path) -> None:
    def template() -> str | None:
        return hf_folder.read(str(folder)).chat_template

    write_json(folder / "tokenizer_config.json", {"chat_template": None})
    assert template() is None
    write_json(folder / "tokenizer_config.json", {"chat_template": "{{ messages }}"})
    assert template() == "tokenizer_config.json"
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert template() == "chat_template.jinja"


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": None, "seq_length": 777}, 777),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 4096),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 2048),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 2048),
        ({"rope_parameters": {"rope_type": "default"}}, 2048),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 333}}, 333),
    ],
)
def test_the_context_length(folder: Path, changes: dict[str, Any], length: int | None) -> None:
    assert hf_folder.read(configure(folder, **changes)).context_length == length


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({"dtype": "torch.float32"}, "float32"),
        ({"dtype": None}, "bfloat16"),  # of the weights
        ({"dtype": None, "text_config": {"dtype": "float16"}}, "float16"),
    ],
)
def test_the_type_of_the_weights(folder: Path, changes: dict[str, Any], dtype: str) -> None:
    assert hf_folder.read(configure(folder, **changes)).dtype == dtype


def test_quantised_weights_stay_as_they_are(folder: Path) -> None:
    configure(folder, quantization_config={"quant_method": "gptq"}, auto_map={"AutoConfig": "c.C"})
    write_tensors(folder / "model.safetensors", "I32", 400)
    found = hf_folder.read(str(folder))
    assert (found.quantization, found.remote_code) == ("gptq", True)
    assert found.weight_bytes(4) == 400


@pytest.mark.parametrize(
    ("changes", "cache"),
    [
        ({"head_dim": 128}, Cache(2, 0, 0, 2 * 2 * 128)),
        ({"num_key_value_heads": None}, Cache(2, 0, 0, 2 * 4 * 16)),
        ({"multi_query": True}, Cache(2, 0, 0, 2 * 16)),
        ({"multi_query_attention": True, "multi_query_group_num": 2}, Cache(2, 0, 0, 2 * 2 * 16)),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, Cache(2, 0, 0, 576)),
        ({"sliding_window": 128}, Cache(0, 2, 128, 64)),
        ({"sliding_window": 128, "use_sliding_window": False}, Cache(2, 0, 0, 64)),
        ({"sliding_window": 128, "model_type": "gemma2"}, Cache(1, 1, 128, 64)),
        ({"sliding_window": 128, "sliding_window_pattern": 2}, Cache(1, 1, 128, 64)),
        ({"sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"]}, Cache(1, 1, 9, 64)),
        ({"layer_types": ["linear_attention", "full_attention"]}, Cache(1, 0, 0, 64)),
        ({"full_attention_interval": 2}, Cache(1, 0, 0, 64)),
        ({"hybrid_override_pattern": "M*M-"}, Cache(1, 0, 0, 64)),
        ({"num_hidden_layers": None}, None),
        ({"num_attention_heads": None, "num_key_value_heads": None}, None),
    ],
)
def test_the_shape_of_the_cache(changes: dict[str, Any], cache: Cache | None) -> None:
    assert read_cache({**LLAMA, **changes}) == cache


@pytest.mark.parametrize(
    ("text", "cache"),
    [
        ({"model_type": "qwen2", "vocab_size": 156_032}, Cache(32, 0, 0, 2 * 32 * 128)),  # Qwen2-Audio-7B's
        ({"model_type": "llama", "num_hidden_layers": 40}, Cache(40, 0, 0, 2 * 32 * 128)),
        ({"model_type": "mistral", "sliding_window": None}, Cache(32, 0, 0, 2 * 8 * 128)),
        ({"model_type": "mistral"}, Cache(0, 32, 4096, 2 * 8 * 128)),
        ({"model_type": "another"}, None),
    ],
)
def test_what_is_left_out_of_the_language_models_part_is_known(text: dict[str, Any], cache: Cache | None) -> None:
    assert read_cache({"text_config": text}) == read_cache({"thinker_config": {"text_config": text}}) == cache


def test_a_window_keeps_no_more_than_itself() -> None:
    assert Cache(1, 2, 100, 10).elements(1000) == 10 * (1000 + 2 * 100)
    assert Cache(1, 2, 100, 10).elements(30) == 10 * 3 * 30


def test_names_on_the_hub_are_told_from_paths(folder: Path) -> None:
    assert hf_folder.looks_like_hub_name("Qwen/Qwen3-8B")
    for path in (str(folder), "/Qwen/Qwen3", "./Qwen/x", "Qwen", "~/Qwen", "a/b/c"):
        assert not hf_folder.looks_like_hub_name(path)


def test_looking_never_fails(folder: Path) -> None:
    assert hf_folder.is_folder(str(folder))
    for path in (folder / "nothing", folder / "config.json", Path("\0")):
        assert not hf_folder.is_folder(str(path))
        assert hf_folder.kind_of(str(path)) is None
