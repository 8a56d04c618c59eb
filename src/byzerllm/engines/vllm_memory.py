"""What a model needs in vLLM: the type that it computes in and the bytes of weights and KV cache.

Standard library only: the worker's own process uses it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from byzerllm.engines.hf_weights import DTYPE_BYTES

if TYPE_CHECKING:
    from byzerllm.engines.hf_folder import Folder

GIB = 2**30
# The KV cache of a worker on CPUs holds one request of the whole context, and as many more as fit into this.
CPU_CACHE = 4 * GIB
_SMALLEST = 64 * 2**20
_BLOCK = 128  # tokens; vLLM keeps whole blocks, on CPUs of this size
_DEFAULT_LENGTH = 2048  # where a model names none; vLLM's own
# Bytes of a weight that vLLM quantises while it loads it; what is not listed here is counted as if it did not.
_QUANTIZED = {"bitsandbytes": 0.5, "fp8": 1.0, "experts_int8": 1.0, "torchao": 0.5}


def cpu_dtype(folder: Folder) -> str | None:
    """The ``--dtype`` for a CPU where vLLM's own choice would be another than the model's: it halves float32."""
    return "float32" if folder.dtype in ("float32", "float64") else None


def cpu_cache(folder: Folder | None, values: Mapping[str, Any], slots: int) -> int:
    """Bytes of the KV cache for a worker on CPUs, where vLLM by itself would take most of the machine's memory."""
    one = _one_sequence(folder, values, on_gpu=False) if folder else 0
    if not one:  # nobody knows
        return CPU_CACHE
    return max(_SMALLEST, one, min(one * slots, CPU_CACHE))


def needs(folder: Folder, values: Mapping[str, Any], slots: int, *, on_gpu: bool) -> tuple[int, int]:
    """Bytes of the weights and of the least KV cache with which the worker can start, on all its devices together."""
    quantized = _QUANTIZED.get(str(values.get("quantization")))
    weights = folder.weight_bytes(quantized or _width(folder, values.get("dtype"), on_gpu=on_gpu))
    if given := values.get("kv_cache_memory_bytes"):
        return weights, int(given)
    cache = _one_sequence(folder, values, on_gpu=True) if on_gpu else cpu_cache(folder, values, slots)
    return weights, cache


def _one_sequence(folder: Folder, values: Mapping[str, Any], *, on_gpu: bool) -> int:
    length = values.get("max_model_len", folder.context_length or _DEFAULT_LENGTH)
    if length < 0:  # it takes what fits
        length = _BLOCK
    tokens = (-(-length // _BLOCK) + 2) * _BLOCK
    stored = str(values.get("kv_cache_dtype", "auto"))
    width = 1.0 if stored.startswith(("fp8", "int8")) else _width(folder, values.get("dtype"), on_gpu=on_gpu)
    return folder.cache_bytes(tokens, width=width)


def _width(folder: Folder, dtype: str | None, *, on_gpu: bool) -> float:
    """Bytes of one number in the type that vLLM computes in."""
    width = DTYPE_BYTES.get(dtype or "auto")
    if width is None:
        width = DTYPE_BYTES.get(folder.dtype, 2)
        width = min(width, 2.0 if on_gpu else 4.0)
    return width
