"""Chat about images: transformers' processor makes pixels and tokens, ``generate`` answers one request at a time."""

from __future__ import annotations

import base64
import copy
import io
import struct
from collections.abc import Mapping
from typing import Any

from byzerllm.engines.host import loading
from byzerllm.engines.host.backend import Prompt
from byzerllm.engines.host.batches import OneThread
from byzerllm.engines.host.causal_lm import CausalLM, context_of, vocabulary
from byzerllm.engines.host.serial import Serial
from byzerllm.engines.host.words import Words, read_template, refusals, refused
from byzerllm.errors import InvalidInput

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # Pillow has others, of which some start programs
MAX_PIXELS = 2**27  # of a request's images together, 3 bytes each


class VisionChat(CausalLM):
    """A ``TextModel`` that sees."""

    def __init__(self, processor: Any, *args: Any) -> None:
        super().__init__(*args)
        self._processor = processor
        self._thread = OneThread()

    async def chat_prompt(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> Prompt:
        self._words.check_template(tools, options)
        return await self._thread.run(self._read, messages, tools, options)

    def _read(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> Prompt:
        images = Images()
        seen = [{**message, "content": parts_of(message.get("content"), images)} for message in messages]
        try:
            made = self._processor.apply_chat_template(
                seen, tools=tools, tokenize=True, return_dict=True, return_tensors="pt", **options
            )
        except refusals() as error:
            raise refused(error) from None
        inputs = {name: value for name, value in made.items() if name not in ("input_ids", "attention_mask")}
        return Prompt(made["input_ids"][0].tolist(), inputs)


def parts_of(content: Any, images: Images) -> list[dict[str, Any]]:
    """A message's content as the parts that processors take, its images read.

    Raises:
        InvalidInput: it is no text and no list, a part is neither text nor image, or an image cannot be read.
    """
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if content is not None and not isinstance(content, list):
        raise InvalidInput("A message's content must be a text or a list of parts.", param="messages")
    parts: list[dict[str, Any]] = []
    for part in content or ():
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif kind == "image_url":
            url = part.get("image_url")
            parts.append({"type": "image", "image": images.read(url.get("url") if isinstance(url, dict) else url)})
        else:
            raise InvalidInput(f"This model reads text and images, and a message holds {kind!r}.", param="messages")
    return parts


class Images:
    """Reads the images of one request, which together have at most ``MAX_PIXELS``."""

    def __init__(self) -> None:
        self._left = MAX_PIXELS

    def read(self, url: Any) -> Any:
        """The picture in a ``data:`` URL. Nothing is fetched: the engine must not become a way into the network.

        Raises:
            InvalidInput: it is another URL, no image, or too large.
        """
        from PIL import Image

        if not isinstance(url, str) or not url.startswith("data:"):
            raise InvalidInput(
                "Images are taken as data URLs only; nothing is fetched.",
                hint="Send data:image/png;base64,...",
                param="messages",
            )
        try:
            data = base64.b64decode(url.partition(",")[2], validate=True)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            self._take(*image.size)
            return image.convert("RGB")
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
            raise InvalidInput(f"An image cannot be read: {error}.", param="messages") from None

    def _take(self, width: int, height: int) -> None:
        self._left -= width * height
        if self._left < 0:
            raise InvalidInput(
                f"The images have more than {MAX_PIXELS:,} pixels; the one of {width} x {height} is too much.",
                param="messages",
            )


def load(path: str, values: Mapping[str, Any], slots: int) -> VisionChat:
    """Load the model of a folder with its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base, _ = loading.adapter_of(path, values)
    processor = AutoProcessor.from_pretrained(base, trust_remote_code=values.get("trust_remote_code", False))
    template = read_template(values.get("chat_template"))
    if template is not None:
        processor.chat_template = template
    model = loading.load(AutoModelForImageTextToText, path, values)
    # A copy: images are read in a thread of their own, and a tokenizer can be used in one at a time.
    tokenizer = copy.deepcopy(processor.tokenizer)
    words = Words(tokenizer, vocabulary(model), base, template or processor.chat_template)
    context = context_of(base, values)
    loading.say("images are read with their own request: requests are answered one after the other")
    return VisionChat(processor, model, tokenizer, words, base, context, Serial(model).work)
