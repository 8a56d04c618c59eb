"""Checks of chats about images with transformers' own processors; see ``torch_checks.py``, which runs them."""

from __future__ import annotations

import asyncio
import base64
import io
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from scripts import tiny_hf_media
from tests.torch_checks import GREEDY

from byzerllm.engines.host import multimodal_chat
from byzerllm.engines.host.backend import Job, Prompt
from byzerllm.engines.host.multimodal_chat import MultimodalChat, Reader, load_processor
from byzerllm.engines.host.parts import Parts, Senses
from byzerllm.errors import InvalidInput

OPTIONS = {"add_generation_prompt": True}
TOKENS = 8


def url(image: Any, kind: str = "PNG", **more: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def seen(image: Any, kind: str = "PNG", **more: Any) -> Any:
    """An image as the model gets it."""
    part = {"type": "image_url", "image_url": {"url": url(image, kind, **more)}}
    return Parts(Senses(sees=True)).of([part])[0]["image"]


def images() -> list[Any]:
    gradient = Image.radial_gradient("L")
    return [gradient.resize(size).convert("RGB") for size in ((120, 60), (60, 150), (90, 90))]


def question(given: list[Any]) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": image} for image in given]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is it"}]}]


def asked(given: list[Any]) -> list[dict[str, Any]]:
    """The same as a client sends it."""
    parts = [{"type": "image_url", "image_url": {"url": url(image)}} for image in given]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is it"}]}]


def right(folder: str, given: list[Any]) -> list[int]:
    """What transformers' own generate says."""
    processor = load_processor(folder, {})
    model = multimodal_chat.load_model(folder, {"device": "cpu"})
    inputs = processor.apply_chat_template(
        question(given), tokenize=True, return_dict=True, return_tensors="pt", **OPTIONS
    )
    with torch.inference_mode():
        said = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS, eos_token_id=None)
    found: list[int] = said[0, inputs["input_ids"].shape[1] :].tolist()
    return found


async def says(model: MultimodalChat, prompt: Prompt) -> list[int]:
    return [token.id async for token in model.generate(Job(prompt, TOKENS, frozenset(), GREEDY))]


def check_a_qwen_vl_says_the_same_as_by_itself_with_torchvision_or_without(path: str) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        tiny_hf_media.write_qwen_vl(Path(folder))
        model = multimodal_chat.load(folder, {"device": "cpu", "sharers": 1}, 4)
        cases = [[], images()[:1], images()[1:2], images()]

        async def together() -> list[list[int]]:
            prompts = [await model.chat_prompt(asked(given), None, OPTIONS) for given in cases]
            return await asyncio.gather(*(says(model, prompt) for prompt in prompts))

        assert model._reader.bare_text  # it is batched
        found = asyncio.run(together())
        assert found == [right(folder, given) for given in cases]
        assert found[1] != found[2]


def check_a_text_is_a_string_where_the_chat_template_writes_strings(path: str) -> None:
    only_string = "{% for m in messages if m.role == 'system' %}{{ m.content | trim }}{% endfor %}"
    either = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% endif %}{% endfor %}"
    with tempfile.TemporaryDirectory() as folder:
        tiny_hf_media.write_vision(Path(folder))
        processor = load_processor(folder, {})
        messages = [
            {"role": "system", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "the one"}]},
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        ]
        parts = processor.tokenizer.decode(Reader(processor, SimpleNamespace()).read(messages, None, {}).ids)
        processor.chat_template = only_string + either
        string = processor.tokenizer.decode(Reader(processor, SimpleNamespace()).read(messages, None, {}).ids)
    assert "be the one<|im_end|>" in parts  # its own template knows parts only
    assert string == "be the onebe the onehello"


def check_a_photo_is_seen_upright(path: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    assert seen(Image.new("RGB", (30, 10)), "JPEG", exif=exif).size == (10, 30)


def check_what_is_transparent_is_white(path: str) -> None:
    for image in (Image.new("RGBA", (3, 3), (0, 0, 0, 0)), Image.new("LA", (3, 3), (0, 0))):
        assert seen(image).getpixel((1, 1)) == (255, 255, 255)
    assert seen(Image.new("RGBA", (3, 3), (200, 0, 0, 255))).getpixel((1, 1)) == (200, 0, 0)
    assert seen(Image.new("P", (3, 3)), transparency=0).getpixel((1, 1)) == (255, 255, 255)
    assert seen(Image.new("L", (3, 3), 7)).getpixel((1, 1)) == (7, 7, 7)


def check_what_is_no_image_is_told_by_the_formats_that_are_read(path: str) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    try:
        Parts(Senses(sees=True)).of([part])
    except InvalidInput as error:
        problem = error.message
    else:
        problem = ""
    assert problem == "An image cannot be read: it is none of PNG, JPEG, WEBP, GIF, BMP."
