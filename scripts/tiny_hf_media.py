"""Write tiny model folders with random weights for images and sound, without a network: for tests.

    python scripts/tiny_hf_media.py OUT --kind vision|qwen_vl|hearing|transcription|speech|image

Needs torch and transformers (and diffusers for ``image``): run it with the interpreter of the engine ``transformers``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf

try:
    from scripts import tiny_gguf as gguf
    from scripts import tiny_hf as text
except ImportError:  # run as a file
    import tiny_gguf as gguf  # type: ignore[import-not-found, no-redef]
    import tiny_hf as text  # type: ignore[import-not-found, no-redef]

VISION_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(folder: Path, *more: str) -> Any:
    """The tokenizer of the chat model, with more special tokens."""
    tokens, merges, _ = gguf.model(gguf.Shape(), say="", loop=False, seed=0)
    folder.mkdir(parents=True, exist_ok=True)
    text.write_bpe(folder, tokens, merges, template=None)
    found = hf.AutoTokenizer.from_pretrained(folder)
    found.add_special_tokens({"additional_special_tokens": list(more)})
    return found


def write_vision(folder: Path) -> None:
    """A LLaVA of a CLIP tower of 32 x 32 pixels and a llama."""
    words = tokenizer(folder, "<image>")
    image_token = words.convert_tokens_to_ids("<image>")
    vision = hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    language = hf.LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, bos_token_id=0, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=vision, text_config=language, image_token_index=image_token, image_seq_length=16
    )
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    pixels = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.LlavaProcessor(
        pixels, words, patch_size=8, vision_feature_select_strategy="default", image_token="<image>",
        num_additional_image_tokens=1, chat_template=VISION_TEMPLATE,
    )  # fmt: skip
    processor.save_pretrained(folder)


def write_qwen_vl(folder: Path) -> None:
    """A Qwen2-VL, whose positions have three numbers and whose images are of any size."""
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    words = tokenizer(folder, *names)
    image, video, start, end = (words.convert_tokens_to_ids(name) for name in names)
    vision = {
        "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14,
        "initializer_range": 0.2,
    }  # fmt: skip
    language = {
        "vocab_size": len(words), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": 0,
        "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    config = hf.Qwen2VLConfig(
        vision_config=vision, text_config=language, image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    hf.Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    words.chat_template = VISION_TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    words.save_pretrained(folder)
    # As it is published: the processor, with its part for videos, is made of this.
    pixels = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    sizes = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 3136, "max_pixels": 50176}
    text.write_json(folder / "preprocessor_config.json", pixels | sizes)


def write_hearing(folder: Path) -> None:
    """A Qwen2-Audio of a tower that hears 2 seconds, 25 tokens each, and a qwen2."""
    words = tokenizer(folder, "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    sound = hf.Qwen2AudioEncoderConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, num_mel_bins=80,
        max_source_positions=100, initializer_range=0.2,
    )  # fmt: skip
    language = hf.Qwen2Config(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, bos_token_id=0, eos_token_id=2, pad_token_id=0,
        initializer_range=0.2,
    )  # fmt: skip
    config = hf.Qwen2AudioConfig(
        audio_config=sound, text_config=language, audio_token_index=words.convert_tokens_to_ids("<|AUDIO|>")
    )
    hf.Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    extractor = hf.WhisperFeatureExtractor(feature_size=80, chunk_length=2)
    hf.Qwen2AudioProcessor(extractor, words).save_pretrained(folder)  # it has a chat template by itself


def write_transcription(folder: Path) -> None:
    """A Whisper that hears 30 seconds and writes at most 20 tokens of nothing sensible."""
    names = ["<|startoftranscript|>", "<|en|>", "<|zh|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>"]
    names += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    words = tokenizer(folder, *names)
    words.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(1501)])  # the times are no control tokens
    ids = {name: words.convert_tokens_to_ids(name) for name in names}
    config = hf.WhisperConfig(
        vocab_size=len(words), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=80,
        max_target_positions=64, decoder_start_token_id=ids["<|startoftranscript|>"], bos_token_id=0, eos_token_id=2,
        pad_token_id=0, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = hf.WhisperForConditionalGeneration(config)
    model.save_pretrained(folder)
    told = json.loads((folder / "generation_config.json").read_text("utf-8"))
    told |= {
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": ids["<|en|>"], "<|zh|>": ids["<|zh|>"]},
        "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "alignment_heads": [[0, 0], [0, 1]],
        "max_length": 24,
    }
    told.pop("_from_model_config")  # else it is made anew from config.json, without all this
    text.write_json(folder / "generation_config.json", told)
    hf.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    vocabulary = words.get_vocab()
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    words.save_pretrained(folder)
    told = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    text.write_json(folder / "tokenizer_config.json", told | {"tokenizer_class": "WhisperTokenizer"})


def write_speech(folder: Path) -> None:
    """A VITS that speaks letters."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = ["<pad>", "<unk>", *"abcdefghijklmnopqrstuvwxyz ',-"]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}), "utf-8")
    words = hf.VitsTokenizer(str(folder / "vocab.json"), phonemize=False, is_uroman=False, language="eng")
    config = hf.VitsConfig(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32,
        flow_size=16, spectrogram_bins=9, upsample_initial_channel=16, prior_encoder_num_flows=2,
        posterior_encoder_num_wavenet_layers=2, prior_encoder_num_wavenet_layers=2, duration_predictor_num_flows=2,
        depth_separable_num_layers=2, duration_predictor_filter_channels=16, upsample_rates=[8, 8, 2, 2],
        upsample_kernel_sizes=[16, 16, 4, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]],
    )  # fmt: skip
    hf.VitsModel(config).save_pretrained(folder)
    words.save_pretrained(folder)


def write_image(folder: Path) -> None:
    """A Stable Diffusion of 64 x 64 pixels."""
    import diffusers

    words = tokenizer(folder / "words")
    clip = hf.CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=2, pad_token_id=0, projection_dim=32,
    )  # fmt: skip
    words.model_max_length = 32
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
    )  # fmt: skip
    diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=hf.CLIPTextModel(clip), tokenizer=words, unet=unet, scheduler=diffusers.DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


WRITERS = {
    "vision": write_vision,
    "qwen_vl": write_qwen_vl,
    "hearing": write_hearing,
    "transcription": write_transcription,
    "speech": write_speech,
    "image": write_image,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny model folder for images or sound.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", required=True, choices=WRITERS)
    given = parser.parse_args()
    torch.manual_seed(0)
    WRITERS[given.kind](given.out)
    print(given.out)


if __name__ == "__main__":
    main()
