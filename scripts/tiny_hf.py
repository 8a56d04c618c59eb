"""Write a tiny Hugging Face model folder, without a network: for tests, demonstrations and benchmarks.

    python scripts/tiny_hf.py OUT                      # a chat model with random weights
    python scripts/tiny_hf.py OUT --say TEXT           # answers TEXT to everything, then stops
    python scripts/tiny_hf.py OUT --say TEXT --loop    # says TEXT again and again, without an end
    python scripts/tiny_hf.py OUT --hidden 768 --layers 12 --heads 12 --kv-heads 4 --vocab 8192    # 83M parameters
    python scripts/tiny_hf.py OUT --kind embedding   # a sentence-transformers folder; or reranker: a cross encoder

The chat model has the weights, tokens and template of ``tiny_gguf.py``, so that every engine can be compared with every
other. Needs numpy and gguf; no torch. ``tiny_hf_media.py`` makes models for images and sound.
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    from scripts import tiny_gguf as gguf
except ImportError:  # run as a file
    import tiny_gguf as gguf  # type: ignore[import-not-found, no-redef]

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Weights = Mapping[str, NDArray[np.float32]]

TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BERT_CONTEXT = 128


def write_safetensors(path: Path, weights: Weights) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in weights.items():
        start, end = end, end + value.nbytes
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for value in weights.values():
            file.write(np.ascontiguousarray(value, np.float32).tobytes())


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), "utf-8")


def in_halves(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The rows of a query or key matrix in the order of Hugging Face's rotary embedding, which turns the first half of
    a head against the second; llama.cpp's turns neighbours."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    halves: NDArray[np.float32] = pairs.transpose(0, 2, 1, 3).reshape(rows, columns)
    return halves


def renamed(weights: Weights, shape: gguf.Shape) -> Weights:
    out = {}
    for name, value in weights.items():
        if name in TOP:
            out[TOP[name]] = value
            continue
        _, layer, part, _ = name.split(".")
        heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(part)
        out[f"model.layers.{layer}.{IN_LAYER[part]}.weight"] = in_halves(value, heads) if heads else value
    return out


def write_bpe(folder: Path, tokens: list[str], merges: list[str], *, template: str | None) -> None:
    special = [
        {"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": True}
        for i, word in enumerate(gguf.SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {word: i for i, word in enumerate(tokens)}, "merges": merges}
    write_json(
        folder / "tokenizer.json",
        {"version": "1.0", "added_tokens": special, "normalizer": None, "pre_tokenizer": byte_level}
        | {"post_processor": None, "decoder": byte_level, "truncation": None, "padding": None, "model": model},
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": gguf.SPECIAL[0],
        "eos_token": gguf.END,
        "pad_token": gguf.SPECIAL[0],
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", config | ({"chat_template": template} if template else {}))


def write(
    folder: Path,
    *,
    say: str = "",
    loop: bool = False,
    shape: gguf.Shape | None = None,
    seed: int = 0,
    template: str | None = gguf.CHAT_TEMPLATE,
) -> int:
    """Write a chat model (of the llama architecture) and return its number of parameters.

    Raises:
        ValueError: ``say`` has a word twice.
    """
    shape = shape or gguf.Shape()
    folder.mkdir(parents=True, exist_ok=True)
    tokens, merges, weights = gguf.model(shape, say=say, loop=loop, seed=seed)
    end = gguf.SPECIAL.index(gguf.END)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(tokens),
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "max_position_embeddings": shape.ctx,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": end,
        "pad_token_id": 0,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": end, "pad_token_id": 0})
    write_bpe(folder, tokens, merges, template=template)
    write_safetensors(folder / "model.safetensors", renamed(weights, shape))
    return sum(value.size for value in weights.values())


# A tiny BERT: it embeds texts, or scores pairs of them


def bert_weights(shape: gguf.Shape, vocab: int, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    hidden, wide = shape.hidden, 2 * shape.hidden
    weights: dict[str, NDArray[np.float32]] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        weights[name] = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.3)

    def linear(name: str, rows: int, columns: int) -> None:
        matrix(f"{name}.weight", rows, columns)
        weights[f"{name}.bias"] = np.zeros(rows, np.float32)

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = np.ones(hidden, np.float32)
        weights[f"{name}.bias"] = np.zeros(hidden, np.float32)

    for name, rows in (("word", vocab), ("position", BERT_CONTEXT), ("token_type", 2)):
        matrix(f"embeddings.{name}_embeddings.weight", rows, hidden)
    norm("embeddings.LayerNorm")
    for layer in range(shape.layers):
        block = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            linear(f"{block}.attention.self.{part}", hidden, hidden)
        linear(f"{block}.attention.output.dense", hidden, hidden)
        norm(f"{block}.attention.output.LayerNorm")
        linear(f"{block}.intermediate.dense", wide, hidden)
        linear(f"{block}.output.dense", hidden, wide)
        norm(f"{block}.output.LayerNorm")
    linear("pooler.dense", hidden, hidden)
    return weights


def write_wordpiece(folder: Path) -> int:
    """A vocabulary of the corpus' words and of single letters; returns its size."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [*BERT_SPECIAL, *dict.fromkeys([*gguf.CORPUS.split(), *letters, *(f"##{c}" for c in letters)])]
    ids = {word: i for i, word in enumerate(words)}
    special = [
        {"id": ids[word], "content": word, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for word in BERT_SPECIAL
    ]
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
    processor = {
        "type": "BertProcessing",
        "sep": ["[SEP]", ids["[SEP]"]],
        "cls": ["[CLS]", ids["[CLS]"]],
    }
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": ids}
    write_json(
        folder / "tokenizer.json",
        {"version": "1.0", "added_tokens": special, "normalizer": normalizer | {"strip_accents": None}}
        | {"pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": processor, "truncation": None}
        | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}, "padding": None}
        | {"model": model | {"max_input_chars_per_word": 100}},
    )
    named = {f"{word.strip('[]').lower()}_token": word for word in BERT_SPECIAL}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": BERT_CONTEXT, **named}
    write_json(folder / "tokenizer_config.json", config)
    return len(words)


def write_bert(folder: Path, kind: str, *, shape: gguf.Shape | None = None, seed: int = 0) -> int:
    """Write a BERT: with mean pooling as a sentence-transformers folder, or with one score as a cross encoder."""
    shape = shape or gguf.Shape()
    folder.mkdir(parents=True, exist_ok=True)
    vocab = write_wordpiece(folder)
    weights: Weights = bert_weights(shape, vocab, seed)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "dtype": "float32",
        "vocab_size": vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": 2 * shape.hidden,
        "max_position_embeddings": BERT_CONTEXT,
        "pad_token_id": 0,
    }
    if kind == "reranker":
        config |= {"architectures": ["BertForSequenceClassification"]}
        config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        classifier = np.random.default_rng(seed + 1).standard_normal((1, shape.hidden), dtype=np.float32)
        weights = {f"bert.{name}": value for name, value in weights.items()}
        weights |= {"classifier.weight": classifier, "classifier.bias": np.zeros(1, np.float32)}
    else:
        write_pooling(folder, shape.hidden)
    write_json(folder / "config.json", config)
    write_safetensors(folder / "model.safetensors", weights)
    return sum(value.size for value in weights.values())


def write_pooling(folder: Path, size: int) -> None:
    """What makes a model folder one of sentence-transformers: the mean over the tokens."""
    steps = (("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"))
    modules = [
        {"idx": int(i), "name": i, "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, path, name in steps
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": BERT_CONTEXT, "do_lower_case": False})
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": size, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny Hugging Face model folder.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", default="chat", choices=("chat", "embedding", "reranker"))
    parser.add_argument("--say", default="", metavar="TEXT", help="what it answers to everything; no word twice")
    parser.add_argument("--loop", action="store_true", help="say it without an end")
    for name, default in vars(gguf.Shape()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    given = parser.parse_args()
    shape = gguf.Shape(**{name: getattr(given, name) for name in vars(gguf.Shape())})
    try:
        if given.kind == "chat":
            size = write(given.out, say=given.say, loop=given.loop, shape=shape)
        else:
            size = write_bert(given.out, given.kind, shape=shape)
    except ValueError as error:
        parser.error(str(error))
    print(f"{given.out}: {size / 1e6:.2f}M parameters")


if __name__ == "__main__":
    main()
