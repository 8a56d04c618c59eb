"""Write the other kinds of tiny GGUF files: a reranker, a LoRA adapter, an image projector. No network.

    python scripts/tiny_gguf_kinds.py rerank OUT.gguf      # a BERT-like model with a class head; words of its own
    python scripts/tiny_gguf_kinds.py lora OUT.gguf        # fits tiny_gguf.py's default shape, and changes what it says
    python scripts/tiny_gguf_kinds.py mmproj OUT.gguf      # the same; images of 28x28 in 14x14 patches

Needs numpy and gguf.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

try:
    from scripts.tiny_gguf import CORPUS, Shape
except ImportError:  # run as a file
    from tiny_gguf import CORPUS, Shape  # type: ignore[import-not-found, no-redef]

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Weights = dict[str, NDArray[np.float32]]

_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PATCH, _IMAGE = 14, 28


class _Random:
    """Random weights, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def linear(self, name: str, rows: int, columns: int, scale: float = 0.1) -> Weights:
        """Weight and bias of one layer."""
        return {f"{name}.weight": self.matrix(rows, columns, scale=scale), f"{name}.bias": np.zeros(rows, np.float32)}

    def matrix(self, *shape: int, scale: float = 0.1) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._generator.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        return values


def _norm(name: str, width: int) -> Weights:
    return {f"{name}.weight": np.ones(width, np.float32), f"{name}.bias": np.zeros(width, np.float32)}


def _save(writer: gguf.GGUFWriter, weights: Weights) -> int:
    for name, value in weights.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sum(value.size for value in weights.values())


def write_reranker(path: Path, *, hidden: int = 64, layers: int = 2, ctx: int = 256, seed: int = 0) -> int:
    """A cross-encoder with a class head and the words of ``tiny_gguf.CORPUS``; returns the number of parameters."""
    words = list(dict.fromkeys(w for w in CORPUS.split() if w.isascii()))
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = [*_BERT_SPECIAL, *(f"\u2581{t}" for t in [*words, *(c for c in letters if c not in words)]), *letters]
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_name("tiny-reranker")
    writer.add_context_length(ctx)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_block_count(layers)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in _BERT_SPECIAL else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_type_count(2)
    for add, word in (
        (writer.add_bos_token_id, "[CLS]"),
        (writer.add_eos_token_id, "[SEP]"),
        (writer.add_sep_token_id, "[SEP]"),
        (writer.add_unk_token_id, "[UNK]"),
        (writer.add_pad_token_id, "[PAD]"),
    ):
        add(_BERT_SPECIAL.index(word))
    return _save(writer, _bert(_Random(seed), len(tokens), hidden, layers, ctx))


def _bert(random: _Random, vocabulary: int, hidden: int, layers: int, ctx: int) -> Weights:
    weights = {
        "token_embd.weight": random.matrix(vocabulary, hidden, scale=1),
        "token_types.weight": random.matrix(2, hidden),
        "position_embd.weight": random.matrix(ctx, hidden),
        **_norm("token_embd_norm", hidden),
    }
    for layer in range(layers):
        block = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights |= random.linear(block + name, hidden, hidden)
        weights |= random.linear(block + "ffn_up", 2 * hidden, hidden)
        weights |= random.linear(block + "ffn_down", hidden, 2 * hidden)
        weights |= _norm(block + "attn_output_norm", hidden) | _norm(block + "layer_output_norm", hidden)
    return weights | random.linear("cls", hidden, hidden) | random.linear("cls.output", 1, hidden)


def write_lora(path: Path, *, rank: int = 4, alpha: float = 64, shape: Shape | None = None, seed: int = 0) -> int:
    """An adapter for the output layer, strong enough that the model says something else; returns its parameters."""
    shape = shape or Shape()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    random = _Random(seed)
    return _save(
        writer,
        {
            "output.weight.lora_a": random.matrix(rank, shape.hidden, scale=1),
            "output.weight.lora_b": random.matrix(shape.vocab, rank, scale=1),
        },
    )


def write_projector(path: Path, *, hidden: int = 32, layers: int = 2, shape: Shape | None = None, seed: int = 0) -> int:
    """An image encoder of LLaVA's kind whose vectors have the width of ``shape``; returns its parameters."""
    shape = shape or Shape()
    writer = gguf.GGUFWriter(str(path), "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_size(_IMAGE)
    writer.add_vision_patch_size(_PATCH)
    writer.add_vision_embedding_length(hidden)
    writer.add_vision_feed_forward_length(2 * hidden)
    writer.add_vision_projection_dim(shape.hidden)
    writer.add_vision_block_count(layers)
    writer.add_vision_head_count(2)
    writer.add_vision_attention_layernorm_eps(1e-5)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    random = _Random(seed)
    patches = (_IMAGE // _PATCH) ** 2
    weights = {
        "v.class_embd": random.matrix(hidden),
        "v.patch_embd.weight": random.matrix(hidden, 3, _PATCH, _PATCH),
        "v.position_embd.weight": random.matrix(patches + 1, hidden),
        **_norm("v.pre_ln", hidden),
    }
    for layer in range(layers):
        block = f"v.blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            weights |= random.linear(block + name, hidden, hidden)
        weights |= random.linear(block + "ffn_up", 2 * hidden, hidden)
        weights |= random.linear(block + "ffn_down", hidden, 2 * hidden)
        weights |= _norm(block + "ln1", hidden) | _norm(block + "ln2", hidden)
    weights |= random.linear("mm.0", shape.hidden, hidden) | random.linear("mm.2", shape.hidden, shape.hidden)
    return _save(writer, weights)


KINDS: dict[str, Callable[[Path], int]] = {"rerank": write_reranker, "lora": write_lora, "mmproj": write_projector}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny GGUF file of another kind.")
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    size = KINDS[given.kind](given.out)
    print(f"{given.out}: {size / 1e6:.2f}M parameters, {given.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
