"""Checks of the batching of prompts with images; see ``torch_checks.py``, which runs them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as hf
from tests.torch_checks import GREEDY, Tickets, Watched, alone, run

from byzerllm.engines.host.backend import Job, Prompt
from byzerllm.engines.host.batching import PIECE, Batcher
from byzerllm.engines.host.causal_lm import problem_of, worker_of
from byzerllm.engines.host.decoder import LocalDecoder, probe_inputs
from byzerllm.engines.host.multimodal_chat import Reader
from byzerllm.engines.host.serial import Serial
from byzerllm.errors import Overloaded

IMAGE, BEGIN, END = 500, 502, 503  # tokens
TEXT: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8, "initializer_range": 0.2,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
QWEN_TOWER = {"depth": 1, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN_TOKENS = {"image_token_id": IMAGE, "vision_start_token_id": BEGIN, "vision_end_token_id": END}
SHAPES = ((8, 12), (4, 4), (16, 4), (8, 8))  # of images, in patches of Qwen's

Ask = Callable[..., Prompt]
"""Makes a prompt of so many tokens of text, in which so many images are, which depend on ``seed``."""


class Spread:
    """Tokens of text with those of images between them, and the kind of each."""

    def __init__(self, length: int, seed: int) -> None:
        self._text = random.Random(seed * 1000 + length).choices(range(3, 490), k=length)
        self.ids = self._text[:2]
        self.kinds = [0] * 2

    def add(self, image: Sequence[int]) -> None:
        self.ids += [BEGIN, *image, END]
        self.kinds += [0, *[1] * len(image), 0]

    def close(self) -> list[int]:
        self.ids += self._text[2:]
        self.kinds += [0] * (len(self._text) - 2)
        return self.ids


def pixels(images: int, seed: int) -> Any:
    return torch.randn((images, 3, 32, 32), generator=torch.Generator().manual_seed(seed))


def llava() -> tuple[Any, Ask]:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER), text_config=hf.LlamaConfig(**TEXT), image_token_index=IMAGE
    )

    def ask(length: int, images: int = 0, seed: int = 0) -> Prompt:
        spread = Spread(length, seed)
        for _ in range(images):
            spread.add([IMAGE] * 16)
        return Prompt(spread.close(), {"pixel_values": pixels(images, seed)} if images else {})

    return ready(hf.LlavaForConditionalGeneration(config)), ask


def qwen2_vl() -> tuple[Any, Ask]:
    """Its positions have three numbers, and an image takes fewer of them than it has tokens."""
    tower = {**QWEN_TOWER, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "initializer_range": 0.2}
    text = {**TEXT, "rope_parameters": MROPE}
    return _qwen(
        hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(vision_config=tower, text_config=text, **QWEN_TOKENS))
    )


def qwen3_vl() -> tuple[Any, Ask]:
    """The same, and what it sees goes into several layers."""
    tower = {
        **QWEN_TOWER, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "initializer_range": 0.2,
        "deepstack_visual_indexes": [0], "num_position_embeddings": 256,
    }  # fmt: skip
    text = {**TEXT, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
    return _qwen(
        hf.Qwen3VLForConditionalGeneration(hf.Qwen3VLConfig(vision_config=tower, text_config=text, **QWEN_TOKENS))
    )


def _qwen(model: Any) -> tuple[Any, Ask]:
    def ask(length: int, images: int = 0, seed: int = 0) -> Prompt:
        spread = Spread(length, seed)
        shapes = [SHAPES[(seed + i) % len(SHAPES)] for i in range(images)]
        for height, width in shapes:
            spread.add([IMAGE] * (height * width // 4))
        patches = sum(height * width for height, width in shapes)
        ids = spread.close()
        if not images:
            return Prompt(ids)
        inputs = {
            "mm_token_type_ids": torch.tensor([spread.kinds]),
            "image_grid_thw": torch.tensor([[1, *shape] for shape in shapes]),
            "pixel_values": torch.randn((patches, 3 * 2 * 8 * 8), generator=torch.Generator().manual_seed(seed)),
        }
        return Prompt(ids, inputs)

    return ready(model), ask


def gemma3() -> tuple[Any, Ask]:
    """The tokens of an image look at each other in both directions; some layers have a window."""
    kinds = ["sliding_attention", "full_attention"]
    text = hf.Gemma3TextConfig(**TEXT, sliding_window=8, layer_types=kinds)
    tower = hf.SiglipVisionConfig(**TOWER)
    config = hf.Gemma3Config(
        text_config=text,
        vision_config=tower,
        mm_tokens_per_image=4,
        image_token_id=IMAGE,
        boi_token_index=BEGIN,
        eoi_token_index=END,
        tie_word_embeddings=False,
    )
    model = ready(hf.Gemma3ForConditionalGeneration(config))
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=3.0)

    def ask(length: int, images: int = 0, seed: int = 0) -> Prompt:
        spread = Spread(length, seed)
        for _ in range(images):
            spread.add([IMAGE] * 4)
        ids = spread.close()
        kinds = {"token_type_ids": torch.tensor([spread.kinds])}
        return Prompt(ids, {**kinds, "pixel_values": pixels(images, seed)} if images else {})

    return model, ask


def mllama() -> tuple[Any, Ask]:
    """Its images are no tokens: some layers look at them beside the text, and keep them as their keys and values."""
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    tower = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_global_layers": 1,
        "attention_heads": 2, "image_size": 32, "patch_size": 8, "vision_output_dim": 64,
        "intermediate_layers_indices": [0], "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]],
    }  # fmt: skip
    config = hf.MllamaConfig(
        vision_config=tower,
        text_config={**text, "cross_attention_layers": [1], "rope_parameters": rope},
        image_token_index=IMAGE,
    )
    model = ready(hf.MllamaForConditionalGeneration(config))
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 0.7)

    def ask(length: int, images: int = 0, seed: int = 0) -> Prompt:
        ids = [IMAGE] * images + Spread(length, seed).close()
        beside = {
            "pixel_values": pixels(1, seed)[:, None, None],
            "aspect_ratio_ids": torch.tensor([[1]]),
            "aspect_ratio_mask": torch.tensor([[[1]]]),
            "cross_attention_mask": torch.ones((1, len(ids), 1, 1), dtype=torch.long),
        }
        return Prompt(ids, beside if images else {})

    return model, ask


def ready(model: Any) -> Any:
    return model.float().eval()


def made(model: Callable[[], tuple[Any, Ask]]) -> tuple[Any, Ask]:
    torch.manual_seed(0)
    return model()


def of(prompt: Prompt, tokens: int = 12) -> Job:
    return Job(prompt, tokens, frozenset(), GREEDY)


def mixed(ask: Ask) -> list[Job]:
    """With one image, none, two, another one; long and short."""
    return [
        of(ask(5, 1)), of(ask(7), 20), of(ask(12, 2, seed=1), 16), of(ask(5, 1, seed=2), 18), of(ask(90), 5),
        of(ask(PIECE + 50, 1, seed=3), 9), of(ask(3), 25),
    ]  # fmt: skip


def same(model: Any, jobs: list[Job], runner: Tickets, **more: Any) -> None:
    right = alone(model, jobs)
    assert run(model, runner, **more) == right
    assert all(ticket.whole for ticket in runner.tickets)


def check_images_and_texts_in_a_batch_say_what_each_says_alone(path: str) -> None:
    for family in (llava, qwen2_vl, qwen3_vl, gemma3):
        model, ask = made(family)
        assert probe_inputs(LocalDecoder(model, 2048), ask(9, 1), ask(6)) is None, family
        looks = alone(model, [of(ask(5, 1)), of(Prompt(ask(5, 1).ids, ask(5, 1, seed=4).inputs))])
        assert looks[0] != looks[1], f"{family} does not look"
        runner = Tickets(mixed(ask))
        same(model, mixed(ask), runner)
        assert runner.most >= 5, family


def check_images_that_come_later_change_nothing(path: str) -> None:
    model, ask = made(qwen2_vl)
    jobs = mixed(ask)
    runner = Tickets(jobs[:2], {3: jobs[2:4], 5: jobs[4:], 100: jobs[:3]})
    same(model, [*jobs, *jobs[:3]], runner, slots=3)


class Positive(Watched):
    def _positions(self, first: int, starts: list[int]) -> Any:
        found = super()._positions(first, starts)
        assert found.min() >= 0
        return found


def check_a_text_in_the_place_of_an_image_has_positions_of_its_own(path: str) -> None:
    model, ask = made(qwen2_vl)
    jobs = [of(ask(5, 1), 30), of(ask(6, 1, seed=1), 3), of(ask(9), 12)]
    same(model, jobs, Tickets(jobs), slots=2, kind=Positive)


class Counting(Watched):
    seen = 0

    def read_prompt(self, row: int, prompt: Prompt) -> Any:
        Counting.seen += 1
        return super().read_prompt(row, prompt)


def check_images_are_seen_again_after_they_had_to_make_room(path: str) -> None:
    model, ask = made(qwen2_vl)
    budget = 4 * 256 * 2 * 2 * 32 * 4
    jobs = [of(ask(100, 1 + i % 2, seed=i), 350) for i in range(4)]
    # Those with images have made room for the second when it ends, and come back together beside the first.
    more = [of(ask(10), 300), of(ask(200), 150), *(of(ask(60, 1, seed=i), 200) for i in (1, 2))]
    for asked, images in ((jobs, 4), (more, 2)):
        runner = Tickets(asked)
        Counting.seen = 0
        same(model, asked, runner, budget=budget, kind=Counting)
        assert runner.most == 4  # they began together
        assert Counting.seen > images


def check_images_of_those_who_leave_change_nothing(path: str) -> None:
    model, ask = made(qwen2_vl)
    jobs = mixed(ask)
    runner = Tickets(jobs)
    runner.cancel_at = {0: 3, 3: 1, 5: 0}
    said, right = run(model, runner), alone(model, jobs)
    stay = (1, 2, 4, 6)
    assert [said[i] for i in stay] == [right[i] for i in stay]
    assert len(said[0]) <= 4
    assert len(said[3]) <= 2
    assert not said[5]


def check_an_image_that_the_model_does_not_take_is_an_error_of_its_own(path: str) -> None:
    model, ask = made(llava)
    two = ask(9, 2)
    jobs = [of(ask(5, 1)), of(Prompt(two.ids, ask(9, 1).inputs)), of(ask(7))]
    runner = Tickets(jobs)
    right = alone(model, [jobs[0], jobs[2]])
    said = run(model, runner)
    assert [said[0], said[2]] == right
    assert [type(ticket.error) for ticket in runner.tickets] == [type(None), ValueError, type(None)]


class Full(Watched):
    """Has no memory for long prompts with images."""

    def read_prompt(self, row: int, prompt: Prompt) -> Any:
        if len(prompt.ids) > 50:
            raise torch.OutOfMemoryError("no memory")
        return super().read_prompt(row, prompt)


def check_an_image_without_memory_ends_nobody_else(path: str) -> None:
    model, ask = made(llava)
    jobs = [of(ask(7)), of(ask(60, 1)), of(ask(5, 1))]
    right = alone(model, [jobs[0], jobs[2]])
    runner = Tickets(jobs)
    said = run(model, runner, kind=Full)
    assert [said[0], said[2]] == right
    assert isinstance(runner.tickets[1].error, Overloaded)


class Forgetful(LocalDecoder):
    """Goes on behind an image as if each of its tokens had a position of its own."""

    def _shift(self, row: int, shift: int) -> None:
        pass


def check_the_probe_sees_wrong_positions(path: str) -> None:
    model, ask = made(qwen2_vl)
    assert probe_inputs(LocalDecoder(model, 2048), ask(9, 1), ask(6)) is None
    assert "other results" in (probe_inputs(Forgetful(model, 2048), ask(9, 1), ask(6)) or "")
    assert "do not fit" in (probe_inputs(LocalDecoder(model, 10), ask(9, 1), ask(6)) or "")


class Processor:
    """A processor that reads every chat as one of two prompts."""

    image_processor = "there is one"

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def apply_chat_template(self, messages: list[Any], **_options: Any) -> dict[str, Any]:
        images = sum(part["type"] == "image" for message in messages for part in message["content"])
        prompt = self._ask(9, images)
        return {"input_ids": torch.tensor([prompt.ids]), **prompt.inputs}


def check_what_cannot_be_batched_answers_one_after_the_other(path: str) -> None:
    for family, batched in ((llava, True), (qwen3_vl, True), (mllama, False)):
        model, ask = made(family)
        reader = Reader(Processor(ask), model.config)
        work, context = worker_of(model, 4, 512, {"sharers": 1}, reader.check)
        assert isinstance(work.__self__, Batcher if batched else Serial), family
        assert reader.bare_text is batched
        assert context == 512
        assert len(alone(model, [of(ask(5, 1))])[0]) == 12


def check_a_broken_device_is_not_taken_for_a_model_that_cannot_be_batched(path: str) -> None:
    model, ask = made(llava)
    decoder = Full(model, 2048)
    try:
        problem_of(decoder, lambda decoder: probe_inputs(decoder, ask(60, 1), ask(6)))
    except torch.OutOfMemoryError:
        return
    raise AssertionError("it would be served one request at a time, for ever")
