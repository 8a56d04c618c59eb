"""Chat about images and sounds: transformers' processor makes tokens of the text and inputs of what is beside it.

The model reads a prompt with its images and sounds in one call, as ``generate`` would; from then on it is a row of the
batch like any other (``batching.py``). Whether a model can be used so is tried when it is loaded, with a small image
and a short sound.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from byzerllm.engines.host import loading
from byzerllm.engines.host.backend import Prompt
from byzerllm.engines.host.batches import OneThread
from byzerllm.engines.host.causal_lm import CausalLM, context_of, vocabulary, worker_of
from byzerllm.engines.host.decoder import probe, probe_inputs
from byzerllm.engines.host.parts import MAX_SECONDS, WINDOW, Parts, Senses
from byzerllm.engines.host.templates import refusals, refused
from byzerllm.engines.host.words import Words
from byzerllm.errors import InvalidInput

STRING = "xqzv"  # that no chat template writes by itself


class MultimodalChat(CausalLM):
    """A ``TextModel`` that sees or hears."""

    def __init__(self, reader: Reader, *args: Any) -> None:
        super().__init__(*args)
        self._reader = reader
        self._thread = OneThread()

    async def chat_prompt(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> Prompt:
        self._words.check_template(tools, options)
        return await self._thread.run(self._read, messages, tools, options)

    def _read(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> Prompt:
        parts = Parts(self._reader.senses)
        perceived = [{**message, "content": parts.of(message.get("content"))} for message in messages]
        prompt = self._reader.read(perceived, tools, options)
        return prompt if parts.media or not self._reader.bare_text else Prompt(prompt.ids)


class Reader:
    """A model's processor, and what it has of ``senses``. ``bare_text``: a text alone is the same to the model without
    what the processor gives beside it, so that it can be read as any other text."""

    def __init__(self, processor: Any, config: Any) -> None:
        self._processor = processor
        self._writes_strings = self._writes_string()
        self.bare_text = False
        sees = getattr(processor, "image_processor", None) is not None
        self.senses = Senses(sees)
        extractor = getattr(processor, "audio_processor", getattr(processor, "feature_extractor", None))
        rate = getattr(extractor, "sampling_rate", 0)  # an extractor without it is for images
        # Some models of a family lack the part that hears, although they have the same processor.
        if rate and getattr(config, "audio_config", extractor) is not None:
            self.senses = Senses(sees, rate, self._longest_sound(rate, getattr(extractor, "chunk_length", WINDOW)))

    def read(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> Prompt:
        """The prompt of messages whose content is in parts.

        Raises:
            InvalidInput: the chat template does not take them.
        """
        if self._writes_strings:
            messages = [_joined(message) for message in messages]
        try:
            made = self._processor.apply_chat_template(
                messages, tools=tools, tokenize=True, return_dict=True, return_tensors="pt", **options
            )
        except refusals() as error:
            raise refused(error) from None
        inputs = {name: value for name, value in made.items() if name not in ("input_ids", "attention_mask")}
        return Prompt(made["input_ids"][0].tolist(), inputs)

    def _writes_string(self) -> bool:
        """Whether the chat template writes a content that is a string: some pass over it. Others take only that from a
        system or a tool, and write parts as Python shows a list."""
        try:
            text = self._processor.apply_chat_template([{"role": "user", "content": STRING}], tokenize=False)
        except refusals():
            return False
        return STRING in text

    def check(self, decoder: Any) -> str | None:
        """Why a model cannot be batched, or None: tried with text, a small image that is not square and a sound."""
        try:
            plain, *perceived = (self._about(*medium) for medium in ([], *self._samples()))
        except InvalidInput as error:
            return str(error)
        problems = (probe_inputs(decoder, prompt, plain) for prompt in perceived)
        problem = probe(decoder) or next(filter(None, problems), None)
        self.bare_text = problem is None
        return problem

    def _about(self, *media: dict[str, Any]) -> Prompt:
        content = [*media, {"type": "text", "text": "What is it?"}]
        return self.read([{"role": "user", "content": content}], None, {"add_generation_prompt": True})

    def _samples(self) -> list[list[dict[str, Any]]]:
        """What to try each sense with."""
        found: list[list[dict[str, Any]]] = []
        if self.senses.sees:
            from PIL import Image

            image = Image.radial_gradient("L").resize((160, 96)).convert("RGB")
            found.append([{"type": "image", "image": image}])
        if self.senses.rate:
            found.append([_noise(self.senses.rate, min(1, self.senses.longest))])
        return found

    def _longest_sound(self, rate: int, window: float) -> float:
        """Seconds of a sound that the model hears. Some processors cut what is beyond one window, and say nothing."""
        try:
            whole, longer = (len(self._about(_noise(rate, seconds)).ids) for seconds in (window, window + 1))
        except InvalidInput:  # it is what every chat with a sound will be told
            return MAX_SECONDS
        return MAX_SECONDS if longer > whole else window


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is a string if it is all text."""
    parts = message["content"]
    if any(part["type"] != "text" for part in parts):
        return message
    return {**message, "content": "".join(part["text"] for part in parts)}


def _noise(rate: int, seconds: float) -> dict[str, Any]:
    import numpy as np

    sound = np.random.default_rng(0).normal(scale=0.1, size=int(rate * seconds))
    return {"type": "audio", "audio": sound.astype(np.float32)}


def load_model(path: str, values: Mapping[str, Any]) -> Any:
    """The model of a folder; of one that can speak, too, the part that answers with text."""
    import transformers

    config = loading.config_of(loading.adapter_of(path, values)[0], values)
    part = getattr(config, "thinker_config", None)
    kind = type(part or config)
    more = {"config": part} if part else {}
    if "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {}):  # code of the model's own
        cls = transformers.AutoModelForImageTextToText
    elif kind in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:  # some that hear are there only
        cls = transformers.AutoModelForSeq2SeqLM
    else:
        cls = transformers.AutoModelForMultimodalLM
    return loading.load(cls, path, values, **more)


def load_processor(folder: str, values: Mapping[str, Any]) -> Any:
    """The processor of a folder. Its part for videos, of which no chat has any, needs the package torchvision: where
    that is missing, one takes its place that reads none, and Pillow reads the images."""
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        with contextlib.suppress(ImportError):  # older releases of transformers have nothing to put there
            _do_without_videos()
    return AutoProcessor.from_pretrained(folder, trust_remote_code=values.get("trust_remote_code", False))


def _do_without_videos() -> None:
    """Have every processor that is loaded from now on read no videos."""
    from transformers.processing_utils import transformers_module
    from transformers.video_processing_utils import VideoProcessorMixin

    # By its name, as "from ... import" would get what stands for a module that cannot be imported.
    module: Any = import_module("transformers.models.auto.video_processing_auto")
    transformers_module.VideoProcessorMixin = module.AutoVideoProcessor = VideoProcessorMixin


def load(path: str, values: Mapping[str, Any], slots: int) -> MultimodalChat:
    """Load the model of a folder with its processor."""
    template = loading.template_of(values)
    base, _ = loading.adapter_of(path, values)
    processor = load_processor(base, values)
    if template is not None:
        processor.chat_template = template
    model = load_model(path, values)
    # A copy: images and sounds are read in a thread of their own, and a tokenizer can be used in one at a time.
    tokenizer = copy.deepcopy(processor.tokenizer)
    words = Words(tokenizer, vocabulary(model), base, template or processor.chat_template)
    loading.phase("warming up")
    reader = Reader(processor, model.config)
    work, context = worker_of(model, slots, context_of(base, values), values, reader.check)
    return MultimodalChat(reader, model, tokenizer, words, base, context, work)
