"""Text generation by DeepSpeed: its kernels on a GPU, or the matrices divided among several ranks."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from byzerllm.engines.host import loading
from byzerllm.engines.host.batching import Batcher
from byzerllm.engines.host.causal_lm import CausalLM, context_of, context_within, problem_of, vocabulary, worker_of
from byzerllm.engines.host.decoder import LocalDecoder
from byzerllm.engines.host.words import Words, read_template
from byzerllm.engines.hosting import OPTIONS_VARIABLE, host_command

MODULE = "byzerllm.engines.host.deepspeed_lm"


def load(path: str, values: Mapping[str, Any], slots: int) -> CausalLM:
    """Load the model of a folder into this process and as many others as there are ranks. Ends the process, with the
    cause in the log, if it cannot be loaded."""
    from transformers import AutoTokenizer

    from byzerllm.engines.host import ranks

    count = values.get("tp_size", 1)
    device = loading.device_of(values)
    meeting = ""
    if count > 1:
        handed = json.dumps({"model_path": path, "values": dict(values)})
        meeting = ranks.start_others(count, host_command(sys.executable, MODULE), {OPTIONS_VARIABLE: handed})
        loading.phase(f"waiting for {count} ranks")
        ranks.join(0, count, meeting, device)
    model = divided(path, values, device)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=values.get("trust_remote_code", False))
    words = Words(tokenizer, vocabulary(model), path, read_template(values.get("chat_template")))
    context = context_of(path, values)
    loading.phase("warming up")
    if count == 1:
        work, context = worker_of(model, slots, context, values)
        return CausalLM(model, tokenizer, words, path, context, work)
    shutil.rmtree(os.path.dirname(meeting))
    leader = ranks.Leader(LocalDecoder(model, context))
    problem = problem_of(leader)
    if problem:
        loading.fail(f"{path} cannot be divided among ranks here: {problem}. Use --infer_backend vllm.")
    budget = count * loading.cache_budget(loading.devices_of(model), values)  # it is one rank's
    context = context_within(leader.token_bytes, context, budget, values)
    return CausalLM(model, tokenizer, words, path, context, Batcher(leader, slots, budget).work)


def divided(path: str, values: Mapping[str, Any], device: str) -> Any:
    """This rank's part of the model, as DeepSpeed makes it."""
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM

    # A kernel for sums over the ranks of one CPU machine, which it would compile for minutes at the first start and
    # which burns its core while it waits. Without it the sums are gloo's.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    count = values.get("tp_size", 1)
    loading.show_progress()
    loading.phase("loading weights")
    config = loading.config_of(path, values)
    dtype = loading.dtype_of(values, device, config.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, trust_remote_code=values.get("trust_remote_code", False), local_files_only=True
    )
    whole = sum(parameter.numel() for parameter in model.parameters())
    if count > 1:
        check_heads(config, count)
    loading.phase("dividing the model" if count > 1 else "initialising DeepSpeed")
    inject = values.get("replace_with_kernel_inject", False)
    engine = deepspeed.init_inference(
        model, dtype=dtype, tensor_parallel={"tp_size": count}, replace_with_kernel_inject=inject
    )
    module = engine.module.eval()
    held = sum(parameter.numel() for parameter in module.parameters())
    loading.say(f"rank {os.environ.get('RANK', 0)} holds {held:,} of {whole:,} parameters")
    return module.to(torch.device(device)) if device != "cuda" else module


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
