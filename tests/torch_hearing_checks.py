"""Checks of chats with models that hear; see ``torch_checks.py``, which runs them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers as hf
from tests.torch_checks import Tickets, alone
from tests.torch_image_checks import BEGIN, END, IMAGE, MROPE, TEXT, Ask, Spread, made, mixed, of, ready, same

from byzerllm.engines.host.backend import Prompt
from byzerllm.engines.host.decoder import LocalDecoder
from byzerllm.engines.host.multimodal_chat import Reader, load_model
from byzerllm.engines.host.parts import MAX_SECONDS

SOUND = 501  # a token
FRAMES = (48, 100, 28)  # of sounds, of which four are a token


def sounds_of(count: int, seed: int, bins: int, width: int) -> tuple[list[int], dict[str, Any]]:
    """How many tokens each of some sounds is, and the sounds; behind them is silence."""
    frames = [FRAMES[(seed + i) % len(FRAMES)] for i in range(count)]
    mask = torch.arange(width)[None] < torch.tensor(frames)[:, None]
    noise = torch.randn((count, bins, width), generator=torch.Generator().manual_seed(seed))
    inputs = {"input_features": noise * mask[:, None], "feature_attention_mask": mask.long()}
    return [number // 4 for number in frames], inputs


def qwen2_audio() -> tuple[Any, Ask]:
    tower = {
        "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "num_mel_bins": 16,
        "max_source_positions": 50, "initializer_range": 0.2,
    }  # fmt: skip
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    config = hf.Qwen2AudioConfig(
        audio_config=hf.Qwen2AudioEncoderConfig(**tower), text_config=hf.Qwen2Config(**text), audio_token_index=SOUND
    )

    def ask(length: int, sounds: int = 0, seed: int = 0) -> Prompt:
        spread = Spread(length, seed)
        tokens, inputs = sounds_of(sounds, seed, 16, 100)
        for count in tokens:
            spread.add([SOUND] * count)
        return Prompt(spread.close(), inputs if sounds else {})

    return ready(hf.Qwen2AudioForConditionalGeneration(config)), ask


def thinker() -> Any:
    """The part of a Qwen2.5-Omni that answers with text."""
    tower = {
        "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "num_mel_bins": 16,
        "max_source_positions": 50, "n_window": 10, "output_dim": 64, "initializer_range": 0.2,
    }  # fmt: skip
    eyes = {
        "depth": 1, "num_heads": 2, "hidden_size": 32, "intermediate_size": 64, "patch_size": 8, "out_hidden_size": 64,
        "fullatt_block_indexes": [0], "initializer_range": 0.2,
    }  # fmt: skip
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    return hf.Qwen2_5OmniThinkerForConditionalGeneration(
        hf.Qwen2_5OmniThinkerConfig(
            audio_config=tower,
            vision_config=eyes,
            text_config={**text, "rope_parameters": MROPE},
            audio_token_index=SOUND,
            image_token_index=IMAGE,
            video_token_index=499,
            vision_start_token_id=BEGIN,
            vision_end_token_id=END,
            audio_start_token_id=504,
            audio_end_token_id=505,
        )
    )


def omni() -> tuple[Any, Ask]:
    """It sees and hears, and its positions have three numbers."""

    def ask(length: int, media: int = 0, seed: int = 0) -> Prompt:
        spread = Spread(length, seed)
        if not media:
            return Prompt(spread.close())
        tokens, inputs = sounds_of(media, seed, 16, 100)
        for count in tokens:
            spread.ids += [504, *[SOUND] * count, 505]
        spread.add([IMAGE] * 12)
        image = torch.randn((48, 3 * 2 * 8 * 8), generator=torch.Generator().manual_seed(seed))
        return Prompt(spread.close(), {**inputs, "pixel_values": image, "image_grid_thw": torch.tensor([[1, 4, 12]])})

    return ready(thinker()), ask


def check_sounds_and_texts_in_a_batch_say_what_each_says_alone(path: str) -> None:
    for family in (qwen2_audio, omni):
        model, ask = made(family)
        hears = alone(model, [of(ask(5, 1)), of(Prompt(ask(5, 1).ids, ask(5, 1, seed=3).inputs))])
        assert hears[0] != hears[1], f"{family} is deaf"
        runner = Tickets(mixed(ask))
        same(model, mixed(ask), runner)
        assert runner.most >= 5, family


class Processor:
    """Makes a prompt of whatever is in a chat; it hears ``window`` seconds at most, or all."""

    image_processor = "there is one"
    feature_extractor = SimpleNamespace(sampling_rate=100, chunk_length=3)

    def __init__(self, ask: Ask, window: int | None) -> None:
        self._ask = ask
        self._most = (window or MAX_SECONDS) * 100

    def apply_chat_template(self, messages: list[Any], **_options: Any) -> dict[str, Any]:
        parts = messages[0]["content"]
        heard = sum(min(len(part["audio"]), self._most) for part in parts if part["type"] == "audio")
        prompt = self._ask(5 + heard // 100, len(parts) - 1)
        return {"input_ids": torch.tensor([prompt.ids]), **prompt.inputs}


def check_what_a_model_takes_and_whether_its_sounds_are_cut(path: str) -> None:
    model, ask = made(omni)
    reader = Reader(Processor(ask, None), model.config)
    assert (reader.senses.takes, reader.senses.longest) == ("text, images and sounds", MAX_SECONDS)
    assert Reader(Processor(ask, 3), model.config).senses.longest == 3
    assert reader.check(LocalDecoder(model, 2048)) is None
    assert reader.bare_text
    deaf = SimpleNamespace(audio_config=None)
    assert Reader(Processor(ask, 3), deaf).senses.takes == "text and images"


def check_of_a_model_that_speaks_too_the_part_that_writes_is_loaded(path: str) -> None:
    right = thinker()
    weights = {f"thinker.{name}": value.clone() for name, value in right.state_dict().items()}
    facts = {"model_type": "qwen2_5_omni", "thinker_config": json.loads(right.config.to_json_string())}
    with tempfile.TemporaryDirectory() as folder:
        torch.save({**weights, "talker.codec_head.weight": torch.zeros(4, 4)}, Path(folder, "pytorch_model.bin"))
        Path(folder, "config.json").write_text(json.dumps(facts), "utf-8")
        found = load_model(folder, {"device": "cpu"})
    assert type(found) is type(right)
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), right.state_dict().values(), strict=True))
