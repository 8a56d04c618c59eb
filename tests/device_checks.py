"""Checks of what lies on which GPU: run by the interpreter of the engine ``transformers``, on a machine without any.

torch's fake tensors have a shape and a device and no numbers. An operation on two of different devices fails with them
as it does on GPUs. The build of torch for CPUs knows no CUDA, so the devices here are of a kind of their own. The last
line of the output is ``whole``.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import transformers as hf
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from byzerllm.engines.host import loading
from byzerllm.engines.host.backend import Job, Prompt, Sampling
from byzerllm.engines.host.decoder import LocalDecoder
from byzerllm.engines.host.sampling import Sampler, choose_all

SHAPE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0,
}  # fmt: skip
# Where device_map="auto" puts the parts of such a model on two GPUs.
PLACES = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0, "model.layers.1": 1, "model.norm": 1}
WAITS = ("__bool__", "__float__", "__index__", "__int__", "cpu", "item", "nonzero", "tolist")


class Strict(TorchDispatchMode):  # type: ignore[misc]  # torch has no types here
    """Refuses what fake tensors let pass: to pick elements with a list that is on another GPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.index.Tensor:
            for index in args[1]:
                assert index is None or index.device.type == "cpu" or index.device == args[0].device, index.device
        return function(*args, **(kwargs or {}))


class Lists(TorchFunctionMode):  # type: ignore[misc]
    """Makes tensors of lists that pick elements: torch itself would fill them on a device, of which there is none."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
            picked = (torch.tensor(list(one)) if isinstance(one, list | range) else one for one in args[1])
            args = (args[0], tuple(picked))
        return function(*args, **(kwargs or {}))


class Placed(AlignDevicesHook):  # type: ignore[misc]  # it has no types
    """accelerate's hook, on a module whose weights are in place already."""

    def init_hook(self, module: Any) -> Any:
        return module


def spread(model: Any) -> Any:
    """The model on two GPUs, as accelerate leaves it."""
    skipped = model._skip_keys_device_placement
    for name, number in {**PLACES, "lm_head": 1}.items():
        module = model.get_submodule(name)
        for part in module.modules():
            for kind in (part._parameters, part._buffers):
                for key, tensor in kind.items():
                    if tensor is not None:
                        moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=f"gpu:{number}")
                        kind[key] = torch.nn.Parameter(moved, False) if kind is part._parameters else moved
        add_hook_to_module(module, Placed(execution_device=f"gpu:{number}", skip_keys=skipped))
    return add_hook_to_module(model, Placed(execution_device="gpu:0", io_same_device=True, skip_keys=skipped))


def check_two_gpus(config: Any) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        model = spread(hf.AutoModelForCausalLM.from_config(config).eval())
        with Strict(), Lists():
            decoder = LocalDecoder(model, 64)
            assert decoder.obstacle() is None
            decoder.resize(2, 16)
            assert decoder.read(0, [0, 0], [[3, 4, 5], [6, 7, 0]], [3, 2]).shape == (2, 512)
            assert decoder.read(0, [3, 2], [[3], [6]], [1, 1]).shape == (2, 512)
            decoder.move(1, 0, 3)
            decoder.resize(4, 32)
            assert decoder.read(1, [0], [[9]], [1]).shape == (1, 512)
            decoder.release()


class Waits(TorchFunctionMode):  # type: ignore[misc]
    """Counts how often the program waits for a GPU's results."""

    count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(function, "__name__", "") in WAITS
        return function(*args, **(kwargs or {}))


def check_a_step_waits_seldom() -> None:
    for sampling, most in ((Sampling(temperature=0), 1), (Sampling(), 16), (Sampling(top_k=20, top_p=0.9), 40)):
        samplers = [Sampler(Job(Prompt([1]), 5, frozenset((3,)), sampling)) for _ in range(8)]
        with Waits() as waits:
            choose_all(samplers, torch.zeros(8, 512))
        assert 0 < waits.count <= most, (sampling, waits.count)


def check_where_weights_go(path: str) -> None:
    def place(gpus: float) -> Any:
        return loading.arguments({"gpus": gpus}, "cuda", torch.bfloat16)["device_map"]

    assert (place(0.5), place(1), place(2)) == ("cuda", "cuda", "auto")
    assert loading.for_pipeline(path, {}, "cuda")["device"] == "cuda"
    quantised = loading.for_pipeline(path, {"quantization": 4}, "cpu")
    assert "device" not in quantised
    assert "quantization_config" in quantised["model_kwargs"]


def main() -> None:
    check_where_weights_go(sys.argv[1])
    check_a_step_waits_seldom()
    _setup_privateuseone_for_python_backend("gpu")
    made = torch.tensor  # of which the same is true
    torch.tensor = lambda data, device=None: torch.empty(made(data).shape, dtype=torch.int64, device=device)
    check_two_gpus(hf.LlamaConfig(**SHAPE))
    kinds = ["sliding_attention", "full_attention"]
    check_two_gpus(hf.Gemma3TextConfig(**SHAPE, head_dim=32, sliding_window=8, layer_types=kinds))
    print("whole")


if __name__ == "__main__":
    main()
