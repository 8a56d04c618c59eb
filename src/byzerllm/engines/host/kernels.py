"""A model whose layers are DeepSpeed's own kernels (``replace_with_kernel_inject``).

The kernels keep keys and values themselves, of one sequence, in memory that they take at the first call; they know
nothing of transformers' caches, nor of today's way to hand these from layer to layer. So such a model is called here
without a cache: with the whole prompt at first, then with one token after the other.
"""

from __future__ import annotations

import inspect
import math
import os
from typing import Any

import torch

from byzerllm.engines.host.decoder import PROBE, difference, tolerance
from byzerllm.engines.host.loading import fail

RESERVE = 600 * 2**20  # bytes that the kernels leave free


class KernelModel:
    """As much of a model of transformers as ``Serial`` needs."""

    def __init__(self, module: Any, reset: Any) -> None:
        self.generation_config = module.generation_config
        self.device = module.device
        self._module = module
        self._reset = reset
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(module.forward).parameters else {}

    def generate(self, input_ids: Any, *, logits_processor: Any, stopping_criteria: Any, **_more: Any) -> None:
        """Choose tokens until a criterion says that it was the last."""
        (force,), (is_over,) = logits_processor, stopping_criteria
        logits = self.begin(input_ids)
        length = input_ids.shape[1]
        while True:
            token = force(input_ids, logits).argmax(-1, keepdim=True)
            if is_over(input_ids, logits).all():
                return
            logits = self.go_on(token, length)
            length += 1

    def begin(self, ids: Any) -> Any:
        """The logits ``[1, vocabulary]`` after a prompt. Without the flag the kernels take one of a single token for
        the next token of the sequence before."""
        self._reset()
        return self._call(ids, first_token=True)

    def go_on(self, token: Any, place: int) -> Any:
        """The logits after one more token, whose position is ``place``."""
        return self._call(token, position_ids=torch.full_like(token, place))

    def _call(self, ids: Any, **more: Any) -> Any:
        with torch.inference_mode():
            return self._module(input_ids=ids, use_cache=False, **more, **self._last).logits[:, -1]


def check_compiler() -> None:
    """End the process if there is nothing to compile the kernels with: DeepSpeed does that when they are first used."""
    from torch.utils import cpp_extension

    if cpp_extension.CUDA_HOME is None or not os.access(os.path.join(cpp_extension.CUDA_HOME, "bin", "nvcc"), os.X_OK):
        fail(
            "backend.replace_with_kernel_inject needs CUDA's compiler nvcc, in the version of this torch "
            f"({torch.version.cuda}): DeepSpeed compiles its kernels on the machine. Install the CUDA toolkit, "
            "or leave the parameter out."
        )


def are_in(module: Any) -> bool:
    """Whether DeepSpeed had kernels for the layers of this model."""
    from deepspeed.model_implementations.transformers.ds_transformer import DeepSpeedTransformerInference

    return any(isinstance(part, DeepSpeedTransformerInference) for part in module.modules())


def of(module: Any) -> KernelModel:
    """The model with its kernels."""
    from deepspeed.model_implementations.transformers.ds_transformer import DeepSpeedTransformerInference

    return KernelModel(module, DeepSpeedTransformerInference.reset_cache)


def expected(model: Any) -> Any:
    """What the model itself says, before the kernels are in it: the logits after a prompt, and after one token more."""
    ids = torch.tensor([PROBE[0]], device=model.device)
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits[:, -2:]


def check(model: KernelModel, right: Any) -> None:
    """End the process if the kernels say something else than ``expected``: they were made for models and for a
    transformers of years ago, and none of their mistakes is an error of its own."""
    ids = torch.tensor([PROBE[0]], device=model.device)
    said = (model.begin(ids[:, :-1]), model.go_on(ids[:, -1:], ids.shape[1] - 1))
    worst = max(difference(found.cpu(), right[:, i].cpu()) for i, found in enumerate(said))
    if not worst < tolerance(right.dtype):  # a NaN is less than nothing
        fail(
            f"DeepSpeed's kernels say something else than the model itself (by {worst:.2g}): they do not suit it. "
            "Leave out backend.replace_with_kernel_inject, or use --infer_backend vllm."
        )


def room(config: Any, free: int, width: int) -> int:
    """The tokens, of a prompt and its answer, that the kernels have a place for in ``free`` bytes: their workspace is
    quadratic in that number. ``width`` is the bytes of a number."""
    heads = config.num_attention_heads
    head = config.hidden_size // heads
    padded = head if head > 128 else next(size for size in (32, 64, 128) if head <= size)
    linear = (10 + 2 * config.num_hidden_layers) * heads * padded
    numbers = max(0, free - RESERVE) / width
    return int((math.sqrt(linear**2 + 4 * heads * numbers) - linear) / (2 * heads))
