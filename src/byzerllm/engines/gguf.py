"""Reading the head of a GGUF file: enough to know what it is and whether all of it is there.

The tensors are not read. A head with a vocabulary of 150,000 words takes some tenths of a second.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from byzerllm.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_CONTEXT = 4096  # tokens of a slot
POOLING_RANK = 4

_STRING, _ARRAY = 8, 9
_WORDS = "tokenizer.ggml.tokens"
_HEAD = "cls"  # its tensors are cls.weight, cls.output.weight ...
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Far above any real model: a larger count means that the file is damaged.
_MAX_ENTRIES = 1 << 20
_MAX_WORDS = 1 << 24
_MAX_DIMENSIONS = 8
_MAX_LAYERS = 1024
_BUFFER = 1 << 20

# Elements and bytes of one block, by ggml's number of the type. A type that is newer than this table counts as empty,
# so that the check of the size is then only less sharp.
BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
    41: (128, 18),  # Q1_0
}

Facts = dict[str, int | float | str | list[int | float]]

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True)
class Cache:
    """What a model keeps of each token: ``keys`` and ``values`` are numbers a token, added up over the layers.

    Layers that look back no further than a ``window`` of tokens are not told from the others, so what is counted with
    it is a lower bound.
    """

    keys: int
    values: int
    window: int | None


@dataclass(frozen=True)
class Header:
    """What the head of a file says. ``needed`` is the size in bytes that it promises, ``size`` what is there.

    ``kind`` is model, adapter or mmproj. ``context_length`` is the number of tokens that the model was trained for;
    ``pooling_type`` is the number by which embedding models say how they pool; both are None where the file does not
    tell, and so is ``cache``. ``has_template``: it says how a chat becomes a prompt; ``ranks``: with a head for scores.
    """

    architecture: str
    context_length: int | None
    pooling_type: int | None
    tensors: int
    size: int
    needed: int
    kind: str = "model"
    layers: int = 0
    cache: Cache | None = None
    has_template: bool = False
    ranks: bool = False


def model_file(path: str) -> Path:
    """The file to give to llama.cpp: ``path`` itself, or the one model in the folder ``path``.

    Of a model in several parts (``-00001-of-0000N``) it is the first; projector files (``mmproj``) are passed over.

    Raises:
        InvalidInput: there is no such path, or the folder holds no model or several.
    """
    found = Path(path).expanduser()
    if found.is_file():
        return found
    if not found.is_dir():
        raise _bad(f"--model_path {path} does not exist.")
    files = sorted(f for f in found.iterdir() if f.suffix.lower() == ".gguf" and "mmproj" not in f.name.lower())
    heads = [f for f in files if _part_number(f) in (None, 1)]
    if len(heads) == 1:
        return heads[0]
    if heads:
        listed = ", ".join(f.name for f in heads)
        raise _bad(f"--model_path {path} holds several models: {listed}.", "Name one of these files.")
    raise _bad(
        f"--model_path {path} holds no .gguf file.",
        "llama_cpp reads GGUF files; other weights are converted with llama.cpp's convert_hf_to_gguf.py.",
    )


def check_model(path: str) -> Header:
    """The head of the model at ``path``, all of whose files were found to be whole. Its sizes are those of all parts.

    Raises:
        InvalidInput: as ``model_file`` and ``read_header``; a file is cut short, or a part is missing.
    """
    first = model_file(path)
    match = _PART.fullmatch(first.name)
    if match and int(match[2]) != 1:
        raise _bad(
            f"--model_path {first} is part {int(match[2])} of a model in {int(match[3])} parts.",
            f"Name the first part, {match[1]}-00001-of-{match[3]}.gguf.",
        )
    header = _check_whole(first)
    for number in range(2, int(match[3]) + 1) if match else ():
        part = first.with_name(f"{match[1]}-{number:05d}-of-{match[3]}.gguf") if match else first
        if not part.is_file():
            raise _bad(f"The model's part {part} is missing.", "Download all parts into one folder.")
        more = _check_whole(part)
        size, needed = header.size + more.size, header.needed + more.needed
        header = replace(header, size=size, needed=needed, ranks=header.ranks or more.ranks)
    return header


def slot_context(header: Header, asked: int | None) -> int:
    """The tokens that one slot holds. 0 stands for what the model was trained for; more than that would be reserved,
    but never used."""
    wanted = DEFAULT_CONTEXT if asked is None else asked
    trained = header.context_length or wanted or DEFAULT_CONTEXT
    return min(wanted or trained, trained)


def _check_whole(path: Path) -> Header:
    header = read_header(path)
    if header.size < header.needed:
        raise _cut_short(f"{path} is {header.size} bytes, its header promises {header.needed}")
    return header


def read_header(path: Path) -> Header:
    """Read the head of one file.

    Raises:
        InvalidInput: it cannot be read, is not GGUF, or is damaged.
    """
    return _read(path, _Reader.header)


def vocabulary(path: str) -> list[bytes]:
    """The words of a model, in the order of their numbers.

    Raises:
        InvalidInput: as ``model_file`` and ``read_header``.
    """
    return _read(model_file(path), _Reader.words)


def _read(path: Path, what: Callable[[_Reader], T]) -> T:
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=_BUFFER) as file:
            return what(_Reader(file, path, size))
    except OSError as error:
        raise _bad(f"Cannot read {path}: {error.strerror or error}.") from None


class _Reader:
    """One pass over the head of a file; no count or length in it is believed before it was compared with the size."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self._file = file
        self._path = path
        self._size = size

    def header(self) -> Header:
        tensors, entries = self._start()
        facts: Facts = {}
        for _ in range(entries):
            name = self._string()
            value = self._value(self._number("I"))
            if value is not None:
                facts[name] = value
        named = dict(self._tensor() for _ in range(tensors))
        end = max(named.values(), default=0)
        alignment = _whole(facts.get("general.alignment")) or 32
        data = -(-self._file.tell() // alignment) * alignment
        architecture = str(facts.get("general.architecture", ""))
        return Header(
            architecture=architecture,
            context_length=_whole(facts.get(f"{architecture}.context_length")),
            pooling_type=_whole(facts.get(f"{architecture}.pooling_type")),
            tensors=tensors,
            size=self._size,
            needed=data + end if tensors else self._file.tell(),
            kind=_kind(facts, architecture),
            layers=_whole(facts.get(f"{architecture}.block_count")) or 0,
            cache=_cache(facts, architecture),
            has_template="tokenizer.chat_template" in facts,
            ranks=any(name.startswith(_HEAD) for name in named),
        )

    def words(self) -> list[bytes]:
        """The vocabulary, in the order of its numbers; empty where the file has none."""
        _, entries = self._start()
        for _ in range(entries):
            name, kind = self._string(), self._number("I")
            if name == _WORDS and kind == _ARRAY and self._number("I") == _STRING:
                count = min(int(self._number("Q")), _MAX_WORDS)
                return [self._take(int(self._number("Q"))) for _ in range(count)]
            self._value(kind)
        return []

    def _start(self) -> tuple[int, int]:
        """The numbers of tensors and of entries."""
        self._check_magic()
        return self._count(), self._count()

    def _check_magic(self) -> None:
        magic = self._file.read(4)
        if magic != MAGIC:
            start = magic + self._file.read(20)
            if start.startswith(b"version https://git-lfs"):
                raise _bad(f"{self._path} is a Git LFS pointer, not the model.", "Run git lfs pull in its folder.")
            raise _bad(f"{self._path} is no GGUF file: it starts with {start[:8]!r}.")
        version = int(self._number("I"))
        if version not in VERSIONS:
            raise _bad(f"{self._path} is GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} can be read.")

    def _take(self, length: int) -> bytes:
        data = self._file.read(length) if length <= self._size else b""
        if len(data) < length:
            raise _cut_short(f"{self._path} is {self._size} bytes and ends within its header")
        return data

    def _skip(self, length: int) -> None:
        if self._file.tell() + length > self._size:
            self._take(self._size + 1)  # as any other read beyond the end
        self._file.seek(length, 1)

    def _number(self, code: str) -> int | float:
        value: int | float = struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]
        return value

    def _count(self) -> int:
        count = int(self._number("Q"))
        if count > _MAX_ENTRIES:
            raise self._damaged()
        return count

    def _string(self) -> str:
        return self._take(int(self._number("Q"))).decode("utf-8", "replace")

    def _value(self, kind: int | float) -> int | float | str | list[int | float] | None:
        """A value, or None in place of a long list or one of words, which are passed over."""
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._list()
        if kind not in _SCALARS:
            raise self._damaged()
        return self._number(_SCALARS[int(kind)])

    def _list(self) -> list[int | float] | None:
        kind, count = int(self._number("I")), int(self._number("Q"))
        if kind == _STRING and count <= _MAX_WORDS:
            for _ in range(count):
                self._take(int(self._number("Q")))
        elif kind in _SCALARS and count <= _MAX_LAYERS:
            return [self._number(_SCALARS[kind]) for _ in range(count)]
        elif kind in _SCALARS:
            self._skip(struct.calcsize("<" + _SCALARS[kind]) * count)
        else:
            raise self._damaged()
        return None

    def _tensor(self) -> tuple[str, int]:
        """A tensor's name, and where it ends, in bytes from the start of the tensors."""
        name = self._string()
        dimensions = int(self._number("I"))
        if dimensions > _MAX_DIMENSIONS:
            raise self._damaged()
        elements = math.prod(int(self._number("Q")) for _ in range(dimensions))
        block, width = BLOCKS.get(int(self._number("I")), (1, 0))
        return name, int(self._number("Q")) + -(-elements // block) * width

    def _damaged(self) -> InvalidInput:
        return _bad(f"{self._path} is damaged: its header makes no sense.", "Download it again.")


def _part_number(path: Path) -> int | None:
    match = _PART.fullmatch(path.name)
    return int(match[2]) if match else None


def _whole(value: int | float | str | list[int | float] | None) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _kind(facts: Facts, architecture: str) -> str:
    if architecture == "clip":  # also of files that are older than the kinds
        return "mmproj"
    return str(facts.get("general.type") or "model")


def _cache(facts: Facts, architecture: str) -> Cache | None:
    """From the sizes of the attention; None where the file does not have them."""

    def fact(name: str) -> int | None:
        return _whole(facts.get(f"{architecture}.{name}"))

    layers, heads = fact("block_count"), fact("attention.head_count")
    if not layers or layers > _MAX_LAYERS or not heads or facts.get(f"{architecture}.attention.causal") is False:
        return None
    each = facts.get(f"{architecture}.attention.head_count_kv")
    every = fact("full_attention_interval") or 1  # the layers between keep a state of a fixed size
    if isinstance(each, list):
        kv_heads = sum(_whole(n) or 0 for n in each)
    else:
        kv_heads = (_whole(each) or heads) * layers // every
    width = (fact("embedding_length") or 0) // heads
    key = fact("attention.key_length") or width
    value = fact("attention.value_length") or width
    if fact("attention.kv_lora_rank"):  # keys and values are stored together, as one compressed vector
        value = 0
    return Cache(kv_heads * key, kv_heads * value, fact("attention.sliding_window"))


def _cut_short(what: str) -> InvalidInput:
    return _bad(f"{what}: the download was cut short.", "Download it again.")


def _bad(message: str, hint: str | None = None) -> InvalidInput:
    return InvalidInput(message, hint=hint, param="model_path")
