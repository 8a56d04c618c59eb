"""Checks of models with DeepSpeed's kernels: run by the interpreter of the engine ``deepspeed``.

The kernels themselves need a GPU. Here DeepSpeed's own Python versions of them take their place, which it has for
machines that lack some; the way in which layers, cache and positions are used is the same. The last line of the output
is ``whole``.
"""

from __future__ import annotations

import copy
import types
from typing import Any

import deepspeed
import torch
import transformers as hf
from deepspeed.ops.op_builder.cpu.no_impl import NotImplementedBuilder

from byzerllm.engines.host import kernels
from byzerllm.engines.host.backend import Prompt
from byzerllm.engines.host.serial import generate

NotImplementedBuilder.load = lambda _self, _verbose=True: types.SimpleNamespace()


def says(model: Any, ids: list[int]) -> list[int]:
    """Twelve tokens after a prompt."""
    tokens: list[int] = []

    def choose(logits: Any) -> tuple[int, bool]:
        tokens.append(int(logits.argmax()))
        return tokens[-1], len(tokens) == 12

    generate(model, Prompt(ids), 12, choose)
    return tokens


def main() -> None:
    torch.manual_seed(0)
    config = hf.GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=2, n_positions=64, eos_token_id=0)
    plain = hf.AutoModelForCausalLM.from_config(config).float().eval()
    right = kernels.expected(plain)
    module = deepspeed.init_inference(
        copy.deepcopy(plain),
        dtype=torch.float32,
        replace_with_kernel_inject=True,
        return_tuple=False,
        max_out_tokens=64,
    ).module.eval()
    assert kernels.are_in(module)
    assert not kernels.are_in(plain)
    injected = kernels.of(module)
    kernels.check(injected, right)
    for prompt in ([5, 6, 7, 8], [9], list(range(3, 40)), [5, 6, 7, 8], [9]):
        assert says(injected, prompt) == says(plain, prompt), prompt
    print("whole")


if __name__ == "__main__":
    main()
