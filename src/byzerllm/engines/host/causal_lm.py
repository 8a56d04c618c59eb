"""Text generation by transformers: decoders in batches, whatever cannot be batched one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from byzerllm.engines import hf_folder
from byzerllm.engines.host import cuda, loading
from byzerllm.engines.host.backend import Job, Prompt, Token
from byzerllm.engines.host.batching import Batcher
from byzerllm.engines.host.decoder import LocalDecoder, probe
from byzerllm.engines.host.grammar import Grammars
from byzerllm.engines.host.runner import Runner
from byzerllm.engines.host.serial import Serial
from byzerllm.engines.host.words import Words, end_ids, sampling_defaults

DEFAULT_CONTEXT = 2048  # of a model that does not say


class CausalLM:
    """A ``TextModel``."""

    def __init__(self, model: Any, tokenizer: Any, words: Words, folder: str, context: int, work: Any) -> None:
        self.context = context
        self.vocabulary = vocabulary(model)
        self.characters = context * words.longest
        self.end_ids = end_ids(tokenizer, model.generation_config)
        self.defaults = sampling_defaults(folder)
        self.tool_format = words.tool_format
        self.encode = words.encode
        self.decode = words.decode
        self._words = words
        self._grammars = Grammars(tokenizer, self.vocabulary, self.end_ids)
        self._runner = Runner(work)
        self._runner.start()

    async def chat_prompt(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> Prompt:
        return Prompt(await self._words.chat(messages, tools, options))

    async def generate(self, job: Job) -> AsyncGenerator[Token, None]:
        structure = job.sampling.structure
        constraint = None if structure is None else await asyncio.to_thread(self._grammars.constraint, structure)
        async with aclosing(self._runner.stream(job, constraint)) as tokens:
            async for token in tokens:
                yield token


def vocabulary(model: Any) -> int:
    """How many tokens the model has a place for."""
    size: int = model.get_input_embeddings().weight.shape[0]
    return size


def load(path: str, values: Mapping[str, Any], slots: int) -> CausalLM:
    """Load the model of a folder. Ends the process, with the cause in the log, if it cannot be loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    template = loading.template_of(values)
    base, _ = loading.adapter_of(path, values)
    trusted = values.get("trust_remote_code", False)
    config = AutoConfig.from_pretrained(base, trust_remote_code=trusted)
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=trusted)
    model = loading.load(AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM, path, values)
    words = Words(tokenizer, vocabulary(model), base, template)
    context = context_of(base, values)
    loading.phase("warming up")
    work, context = worker_of(model, slots, context, values)
    return CausalLM(model, tokenizer, words, base, context, work)


def context_of(folder: str, values: Mapping[str, Any]) -> int:
    """The longest sequence in tokens: what was asked for, else what the model was made for."""
    return values.get("max_model_len") or hf_folder.read(folder).context_length or DEFAULT_CONTEXT


def worker_of(
    model: Any, slots: int, context: int, values: Mapping[str, Any], check: Callable[[Any], str | None] = probe
) -> tuple[Any, int]:
    """What generates, and the context that there is memory for. ``check`` says why a decoder cannot be batched."""
    if model.config.is_encoder_decoder or getattr(model, "_is_stateful", False):
        loading.note(f"{type(model).__name__} cannot be batched: requests are answered one after the other.")
        return Serial(model).work, context
    decoder = LocalDecoder(model, context)
    problem = problem_of(decoder, check)
    if problem:
        loading.note(
            f"{type(model).__name__} cannot be batched ({problem}): requests are answered one after the other."
        )
        return Serial(model).work, context
    budget = loading.cache_budget(loading.devices_of(model), values)
    context = context_within(decoder.token_bytes, context, budget, values)
    return Batcher(decoder, slots, budget).work, context


def problem_of(decoder: Any, check: Callable[[Any], str | None] = probe) -> str | None:
    """Why a model cannot be batched, or None."""
    try:
        return check(decoder)
    except Exception as error:  # whatever its forward says to a cache or masks of ours
        if cuda.cause(error):  # too little memory, a broken device: no matter of the model, and worse one by one
            raise
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def context_within(token_bytes: int, context: int, budget: int, values: Mapping[str, Any]) -> int:
    """The longest sequence that there is memory for. Ends the process if it is shorter than what was asked for."""
    room = budget // max(token_bytes, 1)
    if room >= context:
        return context
    numbers = f"{context} tokens of context take {context * token_bytes:,} bytes, and {budget:,} are free for them"
    if values.get("max_model_len") or room < 1:
        loading.fail(f"out of memory: {numbers}. Give a smaller backend.max_model_len (at most {room}).")
    loading.note(f"The context is {room} tokens: {numbers}.")
    return room
