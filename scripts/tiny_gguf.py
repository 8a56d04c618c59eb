"""Write a tiny GGUF model of the llama architecture, without a network: for tests, demonstrations and benchmarks.

    python scripts/tiny_gguf.py OUT.gguf                      # random weights
    python scripts/tiny_gguf.py OUT.gguf --say TEXT           # answers TEXT to everything, then stops
    python scripts/tiny_gguf.py OUT.gguf --say TEXT --loop    # says TEXT again and again, without an end
    python scripts/tiny_gguf.py OUT.gguf --hidden 512 --layers 8 --heads 8 --kv-heads 8 --type Q8_0   # a larger one

Needs numpy and gguf.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import gguf
    from numpy.typing import NDArray

    Weights = dict[str, NDArray[np.float32]]

START, END = "<|im_start|>", "<|im_end|>"
SPECIAL = ("<|endoftext|>", START, END)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "the a of to and in is that for it as was with be by on not he his but at are this have from or one had "
    "word all were they there been many some time very when much will more would hello world user assistant "
    "system model token stream answer question city weather 你好 世界 今天 天气 如何"
)
FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}


@dataclass(frozen=True)
class Shape:
    """The sizes of a model. ``heads`` must divide ``hidden`` and be a multiple of ``kv_heads``."""

    hidden: int = 64
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    vocab: int = 512
    ctx: int = 2048

    @property
    def feed_forward(self) -> int:
        return 3 * self.hidden

    @property
    def kv_width(self) -> int:
        return self.hidden // self.heads * self.kv_heads


def printable_bytes() -> dict[int, str]:
    """The printable character that GPT-2's byte-level vocabulary has for each byte."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (b for b in range(256) if b not in plain)
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


PRINTABLE = printable_bytes()


def spelled(text: str) -> str:
    return "".join(PRINTABLE[b] for b in text.encode())


def train_bpe(size: int, pieces: Sequence[str]) -> tuple[list[str], list[str]]:
    """A byte-level vocabulary of ``size`` words and its merges; each of ``pieces`` is one word of it."""
    words = Counter(tuple(spelled(w)) for text in CORPUS.split() for w in (" " + text, text))
    tokens = [*SPECIAL, *(PRINTABLE[b] for b in range(256))]
    tokens += [p for p in map(spelled, pieces) if p not in tokens]
    merges = []
    while len(tokens) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(" ".join(best))
        if "".join(best) not in tokens:
            tokens.append("".join(best))
        words = Counter({merged(word, best): count for word, count in words.items()})
    tokens += [f"<|unused{i}|>" for i in range(size - len(tokens))]
    return tokens, merges


def merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    i = 0
    while i < len(word):
        step = 2 if word[i : i + 2] == pair else 1
        out.append("".join(word[i : i + step]))
        i += step
    return tuple(out)


def random_weights(shape: Shape, vocab: int, seed: int) -> Weights:
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        values: NDArray[np.float32] = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)
        return values

    def ones() -> NDArray[np.float32]:
        return np.ones(shape.hidden, np.float32)

    hidden, wide, narrow = shape.hidden, shape.feed_forward, shape.kv_width
    weights: Weights = {
        "token_embd.weight": matrix(vocab, hidden),
        "output_norm.weight": ones(),
        "output.weight": matrix(vocab, hidden),
    }
    for layer in range(shape.layers):
        block = {
            "attn_norm": ones(),
            "ffn_norm": ones(),
            "attn_q": matrix(hidden, hidden),
            "attn_k": matrix(narrow, hidden),
            "attn_v": matrix(narrow, hidden),
            "attn_output": matrix(hidden, hidden),
            "ffn_gate": matrix(wide, hidden),
            "ffn_up": matrix(wide, hidden),
            "ffn_down": matrix(hidden, wide),
        }
        weights |= {f"blk.{layer}.{name}.weight": value for name, value in block.items()}
    return weights


def script(weights: Weights, chain: Sequence[int], *, loop: bool, seed: int) -> None:
    """Make each token of ``chain`` follow the one before it; with ``loop`` the second follows the last again."""
    for name, value in weights.items():
        if name.endswith(("attn_output.weight", "ffn_down.weight")):
            value[:] = 0  # the blocks are still computed, but add nothing
    embedding, head = weights["token_embd.weight"], weights["output.weight"]
    embedding[:] = np.random.default_rng(seed + 1).standard_normal(embedding.shape)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    for before, after in pairwise(chain):
        head[after] = 8 * embedding[before]
    if loop:
        head[chain[1]] += 8 * embedding[chain[-1]]


def pieces_of(text: str) -> list[str]:
    """The words that a scripted text is made of.

    Raises:
        ValueError: a word occurs twice, so that what follows it would not be certain.
    """
    pieces = re.findall(r"\s*[!-~]+|\s*[^\x00-\x7f]", text)
    twice = [piece for piece, count in Counter(pieces).items() if count > 1]
    if twice or "".join(pieces) != text:
        raise ValueError(
            f"--say {text!r}: each word may occur once ({twice[0]!r})" if twice else "--say ends in a space"
        )
    return pieces


def model(shape: Shape, *, say: str, loop: bool, seed: int) -> tuple[list[str], list[str], Weights]:
    """The vocabulary, its merges and the weights by llama.cpp's names.

    Raises:
        ValueError: ``say`` has a word twice.
    """
    pieces = pieces_of(say)
    tokens, merges = train_bpe(shape.vocab, pieces)
    weights = random_weights(shape, len(tokens), seed)
    if pieces:
        chain = [tokens.index(spelled(piece)) for piece in ("\n", *pieces)]
        script(weights, chain if loop else [*chain, tokens.index(END)], loop=loop, seed=seed)
    return tokens, merges, weights


def put_facts(writer: gguf.GGUFWriter, shape: Shape, tokens: list[str], merges: list[str], kind: str) -> None:
    import gguf  # only here and below: the rest serves tiny_hf.py too, where there is none

    writer.add_name("tiny")
    writer.add_context_length(shape.ctx)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind]])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(SPECIAL.index(END))
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def put_tensor(writer: gguf.GGUFWriter, name: str, value: NDArray[np.float32], kind: str) -> None:
    import gguf

    if value.ndim == 1 or kind == "F32":
        writer.add_tensor(name, value)
    elif kind == "F16":
        writer.add_tensor(name, value.astype(np.float16))
    else:
        quantized = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(value, quantized), raw_dtype=quantized)


def write(
    path: Path, *, say: str = "", loop: bool = False, shape: Shape | None = None, kind: str = "F32", seed: int = 0
) -> int:
    """Write a model and return its number of parameters. ``kind`` is F32, F16 or Q8_0.

    Raises:
        ValueError: ``say`` has a word twice.
    """
    import gguf

    shape = shape or Shape()
    tokens, merges, weights = model(shape, say=say, loop=loop, seed=seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    put_facts(writer, shape, tokens, merges, kind)
    for name, value in weights.items():
        put_tensor(writer, name, value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sum(value.size for value in weights.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny GGUF model.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--say", default="", metavar="TEXT", help="what it answers to everything; no word twice")
    parser.add_argument("--loop", action="store_true", help="say it without an end")
    parser.add_argument("--type", default="F32", choices=sorted(FILE_TYPES), dest="kind")
    for name, default in vars(Shape()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    given = parser.parse_args()
    shape = Shape(**{name: getattr(given, name) for name in vars(Shape())})
    try:
        size = write(given.out, say=given.say, loop=given.loop, shape=shape, kind=given.kind)
    except ValueError as error:
        parser.error(str(error))
    print(f"{given.out}: {size / 1e6:.2f}M parameters, {given.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
