"""Loading weights with transformers: data type, device, quantisation, adapters; and the words of the log.

Lines that begin with ``byzerllm:`` are read by the server: ``phase:`` is what is being done, ``cause:`` why it failed,
``note:`` what a deployer is to know.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from byzerllm.engines.host import cuda
from byzerllm.engines.host.templates import flaw_of, template_text

PREFIX = "byzerllm: "
CPU_SHARE = 0.5  # of the free memory, for keys and values
GPU_SHARE = 0.9


def say(text: str) -> None:
    """A line for the log."""
    sys.stdout.write(f"{PREFIX}{text}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """What whoever deploys is to know, shown when the worker is ready."""
    say(f"note: {' '.join(text.split())}")


def phase(text: str) -> None:
    """What is being done now, as ``stat`` and a waiting ``deploy`` show it."""
    say(f"phase: {text}")


def fail(cause: str) -> NoReturn:
    """End the process with the cause as its last line."""
    say(f"cause: {' '.join(cause.split())}")
    os._exit(1)


def device_of(values: Mapping[str, Any]) -> str:
    """``cuda``, ``mps`` or ``cpu``: the one that was asked for, else the best there is. Ends the process if the worker
    has a GPU that torch cannot use: a CPU in its place would be a hundred times slower, and nobody would know why."""
    import torch

    device = values.get("device") or ("cuda" if values.get("gpus") or torch.cuda.is_available() else "")
    if device == "cuda" and (why := cuda.problem()):
        fail(f"no GPU can be used: {why}.")
    return str(device or ("mps" if torch.backends.mps.is_available() else "cpu"))


def dtype_of(values: Mapping[str, Any], device: str, own: Any) -> Any:
    """The type that was asked for, else the model's own; but a CPU computes in float32 what is float16, as it has no
    instructions for that."""
    import torch

    asked = values.get("dtype", "auto")
    if asked != "auto":
        return getattr(torch, asked)
    return torch.float32 if own is None or (device == "cpu" and own == torch.float16) else own


def arguments(values: Mapping[str, Any], device: str, own: Any = None) -> dict[str, Any]:
    """What ``from_pretrained`` takes for these parameters; ``own`` is the data type of the weights."""
    given: dict[str, Any] = {
        "dtype": dtype_of(values, device, own),
        "trust_remote_code": values.get("trust_remote_code", False),
        "local_files_only": True,
    }
    if "attn_implementation" in values:
        given["attn_implementation"] = values["attn_implementation"]
    # With one GPU "auto" would leave in RAM what does not fit, and be very slow without a word.
    given["device_map"] = "auto" if device == "cuda" and values.get("gpus", 1) > 1 else device
    if values.get("quantization"):
        given["quantization_config"] = _quantization(values, device)
    return given


def encoder_arguments(path: str, values: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The same for a model that libraries above transformers load, which place it themselves."""
    given = arguments(values, device, config_of(path, values).dtype)
    return {
        name: value for name, value in given.items() if name in ("dtype", "attn_implementation", "quantization_config")
    }


def for_pipeline(path: str, values: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The same in the form of ``pipeline``."""
    given = encoder_arguments(path, values, device)
    # Weights that are quantised while they are loaded are placed then, and a pipeline must not move them.
    placed = {} if "quantization_config" in given else {"device": device}
    return {
        "dtype": given.pop("dtype"),
        "model_kwargs": given,
        "trust_remote_code": values.get("trust_remote_code", False),
        **placed,
    }


def _quantization(values: Mapping[str, Any], device: str) -> Any:
    import importlib.util

    bits = values["quantization"]
    if importlib.util.find_spec("bitsandbytes") is None:
        fail(
            f"backend.quantization={bits} needs the package bitsandbytes in the engine's environment. "
            f"Run: {sys.executable} -m pip install bitsandbytes"
        )
    import torch
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=values.get("llm_int8_threshold", 6.0))
    half = torch.bfloat16 if device != "cuda" or torch.cuda.is_bf16_supported() else torch.float16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=half)


def config_of(path: str, values: Mapping[str, Any]) -> Any:
    """The model's configuration, with the type of its weights as ``dtype``."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=values.get("trust_remote_code", False))
    config.dtype = config.get_text_config().dtype or config.dtype
    return config


def load(cls: Any, path: str, values: Mapping[str, Any], **more: Any) -> Any:
    """The model of class ``cls`` from the folder ``path``, ready to be used, with its adapter if there is one. ``more``
    goes to ``from_pretrained``."""
    device = device_of(values)
    base, adapter = adapter_of(path, values)
    show_progress()
    phase("loading weights")
    model = cls.from_pretrained(base, **arguments(values, device, config_of(base, values).dtype), **more)
    if adapter:
        phase("loading the LoRA adapter")
        model = _with_adapter(model, adapter)
    left = left_out(getattr(model, "hf_device_map", None) or {})
    if left and device == "cuda":
        fail(
            f"out of memory: {left} of the model's parts have no place on its {values['gpus']:g} GPUs. Use more of "
            "them, a smaller model or backend.quantization=4."
        )
    return model.eval()


def left_out(places: Mapping[str, Any]) -> int:
    """How many parts of a model are on no GPU."""
    return sum(place in ("cpu", "disk") for place in map(str, places.values()))


def show_progress() -> None:
    """transformers' progress bars become lines ``loading weights 40%``."""
    from transformers.utils import logging

    def bar(make: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("desc") == "Loading weights" and args:
            return _counted(list(args[0]))
        return make(*args, **{**kwargs, "disable": True})

    logging.set_tqdm_hook(bar)


def _counted(items: list[Any]) -> Iterator[Any]:
    told = 0
    for done, item in enumerate(items, 1):
        yield item
        tenth = 10 * done // len(items)
        if tenth > told:
            told = tenth
            phase(f"loading weights {10 * tenth}%")


def adapter_of(path: str, values: Mapping[str, Any]) -> tuple[str, str | None]:
    """Where the weights are, and the adapter. In the older tool's layout ``PATH/pretrained_model`` holds the weights
    and ``PATH`` itself the adapter."""
    inner = Path(path) / "pretrained_model"
    base = str(inner) if inner.is_dir() else path
    if "lora_path" in values:
        return base, str(Path(values["lora_path"]).expanduser())
    return base, path if inner.is_dir() and (Path(path) / "adapter_config.json").is_file() else None


def _with_adapter(model: Any, adapter: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError:
        fail(f"A LoRA adapter needs the package peft. Run: {sys.executable} -m pip install peft")
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def template_of(values: Mapping[str, Any]) -> str | None:
    """The chat template that was given. Ends the process if it is none: every chat would fail."""
    if "chat_template" not in values:
        return None
    template = template_text(values["chat_template"])
    if flaw := flaw_of(template):
        fail(f"backend.chat_template cannot be read as a Jinja template: {flaw}.")
    return template


def cache_budget(devices: Iterable[Any], values: Mapping[str, Any]) -> int:
    """Bytes that keys and values may take on the devices that hold the weights, counted when those are loaded. Of what
    other workers have a share in, it is this one's share (see ``main.py``)."""
    gpus = [device for device in devices if device.type == "cuda"]
    if not gpus:
        return int(_free_memory() * CPU_SHARE / values["sharers"])
    # Each holds the keys and values of its layers, about as many as the others: the fullest says how much is possible.
    return len(gpus) * min(gpu_budget(gpu, values) for gpu in gpus)


def gpu_budget(gpu: Any, values: Mapping[str, Any]) -> int:
    """Bytes that this worker may still take on a GPU."""
    import torch

    torch.cuda.empty_cache()  # what the allocator has kept from loading is free too
    free, total = torch.cuda.mem_get_info(gpu)
    return gpu_room(free, total, torch.cuda.memory_allocated(gpu), values["gpus"])


def gpu_room(free: int, total: int, own: int, share: float) -> int:
    """Bytes that keys and values may take on a GPU of which this worker, which holds ``own`` already, has ``share``."""
    room = free * GPU_SHARE
    return int(max(0, room if share >= 1 else min(room, total * GPU_SHARE * share - own)))


def devices_of(model: Any) -> frozenset[Any]:
    """The devices that hold a model's weights."""
    return frozenset(parameter.device for parameter in model.parameters())


def _free_memory() -> int:
    """Of this machine or of the control group that this process is limited by, whichever is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text("ascii") for name in ("max", "current"))
        free = min(free, int(limit) - int(used))
    except (OSError, ValueError, StopIteration):  # no Linux, or no limit
        pass
    return max(free, 0)
