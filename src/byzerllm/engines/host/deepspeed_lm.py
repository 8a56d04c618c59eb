"""Text generation by DeepSpeed: its kernels on a GPU, or the matrices divided among several ranks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from byzerllm.engines.host import loading
from byzerllm.engines.host.batching import Batcher
from byzerllm.engines.host.causal_lm import CausalLM, context_of, context_within, problem_of, vocabulary, worker_of
from byzerllm.engines.host.decoder import LocalDecoder
from byzerllm.engines.host.serial import Serial
from byzerllm.engines.host.words import Words
from byzerllm.engines.hosting import OPTIONS_VARIABLE, host_command

MODULE = "byzerllm.engines.host.deepspeed_lm"


def load(path: str, values: Mapping[str, Any], slots: int) -> CausalLM:
    """Load the model of a folder into this process and as many others as there are ranks. Ends the process, with the
    cause in the log, if it cannot be loaded."""
    from transformers import AutoTokenizer

    template = loading.template_of(values)
    device = loading.device_of(values)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=values.get("trust_remote_code", False))
    context = context_of(path, values)
    if values.get("tp_size", 1) > 1:
        model, work, context = _shared(path, values, slots, context, device)
    else:
        model, work, context = _whole(path, values, slots, context, device)
    words = Words(tokenizer, vocabulary(model), path, template)
    return CausalLM(model, tokenizer, words, path, context, work)


def _whole(path: str, values: Mapping[str, Any], slots: int, context: int, device: str) -> tuple[Any, Any, int]:
    """The model in this process, what generates with it, and its context."""
    from byzerllm.engines.host import kernels

    if not values.get("replace_with_kernel_inject"):
        model = divided(path, values, device)
    else:
        model = _loaded(path, values, device)
        kernels.check_compiler()
        context = _kernels_context(model, context, values)
        right = kernels.expected(model)
        loading.phase("compiling DeepSpeed's kernels")
        model = _initialised(model, values, device, return_tuple=False, max_out_tokens=context)
        if kernels.are_in(model):
            loading.phase("warming up")
            injected = kernels.of(model)
            kernels.check(injected, right)
            return model, Serial(injected).work, context
        loading.note(f"DeepSpeed has no kernels for {type(model).__name__}: it runs with its own layers.")
    loading.phase("warming up")
    return model, *worker_of(model, slots, context, values)


def _kernels_context(model: Any, context: int, values: Mapping[str, Any]) -> int:
    """The longest sequence that the kernels have memory for. Ends the process if it is shorter than what was asked
    for."""
    from byzerllm.engines.host import kernels

    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = loading.gpu_budget("cuda", values) - weights
    possible = kernels.room(model.config, free, model.dtype.itemsize)
    if possible >= context:
        return context
    if possible < 1 or values.get("max_model_len"):
        loading.fail(
            f"out of memory: beside the weights {max(0, free):,} bytes are free, in which DeepSpeed's kernels have a "
            f"place for {possible} tokens, and not for {context}. Give a smaller backend.max_model_len."
        )
    loading.note(f"The context is {possible} tokens: there is no memory for more in DeepSpeed's kernels.")
    return possible


def _shared(path: str, values: Mapping[str, Any], slots: int, context: int, device: str) -> tuple[Any, Any, int]:
    """The first rank's part of the model, what generates with all parts, and the context."""
    from byzerllm.engines.host import ranks

    count = values["tp_size"]
    handed = json.dumps({"model_path": path, "values": dict(values)})
    meeting = ranks.start_others(count, host_command(sys.executable, MODULE), {OPTIONS_VARIABLE: handed})
    loading.phase(f"waiting for {count} ranks")
    ranks.join(0, count, meeting, device)
    model = divided(path, values, device)
    loading.phase("warming up")
    leader = ranks.Leader(LocalDecoder(model, context))
    problem = problem_of(leader)
    if problem:
        loading.fail(f"{path} cannot be divided among ranks here: {problem}. Use --infer_backend vllm.")
    budget = count * loading.cache_budget(loading.devices_of(model), values)  # it is one rank's
    context = context_within(leader.token_bytes, context, budget, values)
    return model, Batcher(leader, slots, budget).work, context


def divided(path: str, values: Mapping[str, Any], device: str) -> Any:
    """This rank's part of the model, as DeepSpeed makes it."""
    count = values.get("tp_size", 1)
    model = _loaded(path, values, device)
    whole = sum(parameter.numel() for parameter in model.parameters())
    if count > 1:
        check_heads(model.config, count)
    loading.phase("dividing the model" if count > 1 else "initialising DeepSpeed")
    module = _initialised(model, values, device)
    held = sum(parameter.numel() for parameter in module.parameters())
    loading.say(f"rank {os.environ.get('RANK', 0)} holds {held:,} of {whole:,} parameters")
    return module


def _loaded(path: str, values: Mapping[str, Any], device: str) -> Any:
    """The model in RAM, in the type that it will have on ``device``."""
    from transformers import AutoModelForCausalLM

    loading.show_progress()
    loading.phase("loading weights")
    dtype = loading.dtype_of(values, device, loading.config_of(path, values).dtype)
    trusted = values.get("trust_remote_code", False)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=trusted, local_files_only=True)
    return model.eval()


def _initialised(model: Any, values: Mapping[str, Any], device: str, **more: Any) -> Any:
    """What DeepSpeed makes of a model, on ``device``."""
    import deepspeed
    import torch

    # A kernel for sums over the ranks of one CPU machine, which it would compile for minutes at the first start and
    # which burns its core while it waits. Without it the sums are gloo's.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine = deepspeed.init_inference(
        model,
        dtype=model.dtype,
        tensor_parallel={"tp_size": values.get("tp_size", 1)},
        replace_with_kernel_inject=values.get("replace_with_kernel_inject", False),
        **more,
    )
    module = engine.module.eval()
    return module if device == "cuda" else module.to(torch.device(device))  # a rank's GPU is DeepSpeed's choice


def check_heads(config: Any, count: int) -> None:
    """End the process if the heads cannot be divided: DeepSpeed would leave such matrices whole, or cut heads."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if heads % count:
        loading.fail(f"backend.tp_size={count} does not divide the model's {heads} key/value heads.")


def main() -> None:
    """A rank that follows."""
    from byzerllm.engines.host import ranks

    given = json.loads(os.environ.pop(OPTIONS_VARIABLE))
    rank, count, meeting = os.environ.pop(ranks.RANK_VARIABLE).split(" ", 2)
    ranks.end_with_leader()
    device = loading.device_of(given["values"])
    ranks.join(int(rank), int(count), meeting, device)
    model = divided(given["model_path"], given["values"], device)
    ranks.follow(LocalDecoder(model, context_of(given["model_path"], given["values"])))


if __name__ == "__main__":
    main()
