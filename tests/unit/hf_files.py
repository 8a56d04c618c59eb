"""A Hugging Face model folder that is whole and holds nothing: for tests of what reads one."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_tensors(path: Path, dtype: str = "BF16", size: int = 1000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"__metadata__": {"format": "pt"}, "a": {"dtype": dtype, "shape": [], "data_offsets": [0, size]}}
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(size))


def configure(folder: Path, **changes: Any) -> str:
    write_json(folder / "config.json", {**LLAMA, **changes})
    return str(folder)


def whole_folder(path: Path) -> Path:
    """A causal LM in ``path``: 1000 bytes of weights, no chat template."""
    write_json(path / "config.json", LLAMA)
    write_json(path / "tokenizer.json", {})
    write_tensors(path / "model.safetensors")
    return path
