"""Chat about images: transformers' processor makes pixels and tokens, ``generate`` answers one request at a time."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any

from byzerllm.engines.host import loading
from byzerllm.engines.host.backend import Prompt
from byzerllm.engines.host.causal_lm import CausalLM, context_of, vocabulary
from byzerllm.engines.host.serial import Serial
from byzerllm.engines.host.words import Words, read_template, refusals, refused
from byzerllm.errors import InvalidInput


class VisionChat(CausalLM):
    """A ``TextModel`` that sees."""

    def __init__(self, processor: Any, *args: Any) -> None:
        super().__init__(*args)
        self._processor = processor

    async def chat_prompt(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> Prompt:
        self._words.check_template(tools)
        seen = [{**message, "content": parts_of(message.get("content"))} for message in messages]
        try:
            made = self._processor.apply_chat_template(
                seen, tools=tools, tokenize=True, return_dict=True, return_tensors="pt", **options
            )
        except refusals() as error:
            raise refused(error) from None
        inputs = {name: value for name, value in made.items() if name not in ("input_ids", "attention_mask")}
        return Prompt(made["input_ids"][0].tolist(), inputs)


def parts_of(content: Any) -> list[dict[str, Any]]:
    """A message's content as the parts that processors take, its images read.

    Raises:
        InvalidInput: a part is neither text nor image, or an image cannot be read.
    """
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts: list[dict[str, Any]] = []
    for part in content or ():
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif kind == "image_url":
            url = part.get("image_url")
            parts.append({"type": "image", "image": _image(url.get("url") if isinstance(url, dict) else url)})
        else:
            raise InvalidInput(f"This model reads text and images, and a message holds {kind!r}.", param="messages")
    return parts


def _image(url: Any) -> Any:
    """The picture in a ``data:`` URL. Nothing is fetched: the engine must not become a way into the network."""
    from PIL import Image, UnidentifiedImageError

    if not isinstance(url, str) or not url.startswith("data:"):
        raise InvalidInput(
            "Images are taken as data URLs only; nothing is fetched.",
            hint="Send data:image/png;base64,...",
            param="messages",
        )
    try:
        data = base64.b64decode(url.partition(",")[2], validate=True)
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"An image cannot be read: {error}.", param="messages") from None


def load(path: str, values: Mapping[str, Any], slots: int) -> VisionChat:
    """Load the model of a folder with its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base, _ = loading.adapter_of(path, values)
    processor = AutoProcessor.from_pretrained(base, trust_remote_code=values.get("trust_remote_code", False))
    template = read_template(values.get("chat_template"))
    if template is not None:
        processor.chat_template = template
    model = loading.load(AutoModelForImageTextToText, path, values)
    words = Words(processor.tokenizer, vocabulary(model), base, template or processor.chat_template)
    context = context_of(base, values)
    loading.say("images are read with their own request: requests are answered one after the other")
    return VisionChat(processor, model, processor.tokenizer, words, base, context, Serial(model).work)
