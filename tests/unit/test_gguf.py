from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

import gguf as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.engines import gguf
from byzerllm.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
Fact = tuple[str, int, bytes]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def words(*values: str) -> bytes:
    return struct.pack("<IQ", STRING, len(values)) + b"".join(text(v) for v in values)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARCHITECTURE: Fact = ("general.architecture", STRING, text("llama"))
CONTEXT: Fact = ("llama.context_length", U32, struct.pack("<I", 8192))


def head(*facts: Fact, tensors: tuple[bytes, ...] = (), version: int = 3) -> bytes:
    body = b"".join(text(name) + struct.pack("<I", kind) + value for name, kind, value in facts)
    return b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(facts)) + body + b"".join(tensors)


def whole(*facts: Fact) -> bytes:
    """A file with one Q8_0 tensor of 64 elements (68 bytes) and one F32 tensor of 2x3 (24 bytes)."""
    start = head(*facts, tensors=(tensor("a", (64,), 8, 0), tensor("b", (2, 3), 0, 96)))
    return start + b"\0" * (-len(start) % 32) + b"\1" * (96 + 24)


def written(folder: Path, data: bytes, name: str = "m.gguf") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_facts_of_every_kind_are_passed_or_read(tmp_path: Path) -> None:
    data = whole(
        ARCHITECTURE,
        ("tokenizer.ggml.tokens", ARRAY, words("a", "", "你好")),
        ("tokenizer.ggml.scores", ARRAY, struct.pack("<IQ3f", F32, 3, 1, 2, 3)),
        ("some.flag", BOOL, b"\1"),
        CONTEXT,
        ("llama.pooling_type", I32, struct.pack("<i", 1)),
    )
    header = gguf.check_model(str(written(tmp_path, data)))
    assert header == gguf.Header("llama", 8192, 1, tensors=2, size=len(data), needed=len(data))


def test_what_the_file_does_not_tell_is_none(tmp_path: Path) -> None:
    header = gguf.check_model(str(written(tmp_path, whole(ARCHITECTURE))))
    assert (header.context_length, header.pooling_type) == (None, None)


def test_alignment_of_the_file_counts(tmp_path: Path) -> None:
    start = head(("general.alignment", U32, struct.pack("<I", 256)), tensors=(tensor("a", (1,), 0, 0),))
    assert gguf.read_header(written(tmp_path, start)).needed == 256 + 4


def test_a_type_of_tomorrow_counts_by_its_offset(tmp_path: Path) -> None:
    start = head(tensors=(tensor("a", (64,), 999, 4096),), version=2)
    assert gguf.read_header(written(tmp_path, start)).needed >= 4096


@pytest.mark.parametrize("missing", [1, 24, 119, 130, 200])
def test_a_file_cut_short_says_so(tmp_path: Path, missing: int) -> None:
    data = whole(ARCHITECTURE, CONTEXT)
    path = written(tmp_path, data[:-missing])
    with pytest.raises(InvalidInput, match=rf"{len(data) - missing} bytes.*the download was cut short"):
        gguf.check_model(str(path))


@given(st.data())
def test_damage_is_refused_or_passed_over_but_no_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = bytearray(whole(ARCHITECTURE, ("t", ARRAY, words("a", "b")), CONTEXT))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path_factory.getbasetemp(), bytes(good), "damaged.gguf")
    with contextlib.suppress(InvalidInput):
        gguf.check_model(str(path))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no GGUF"),
        (b"PK\3\4 something else", "no GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"GGUF" + struct.pack("<I", 1), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + b"\0" * 16, "version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "damaged"),
        (head(("a", 77, b"")), "damaged"),
        (head(("a", ARRAY, struct.pack("<IQ", ARRAY, 1))), "damaged"),
        (head(("a", ARRAY, struct.pack("<IQ", U64, 2**60))), "cut short"),
        (head(("a", STRING, struct.pack("<Q", 2**63))), "cut short"),
    ],
)
def test_what_is_no_model_says_so(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        gguf.check_model(str(written(tmp_path, data)))


def test_a_folder_stands_for_the_one_model_in_it(tmp_path: Path) -> None:
    model = written(tmp_path, whole(ARCHITECTURE))
    written(tmp_path, b"", "mmproj-model-f16.gguf")
    written(tmp_path, b"", "README.md")
    assert gguf.model_file(str(tmp_path)) == model


def test_a_folder_with_several_models_lists_them(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        written(tmp_path, b"", name)
    with pytest.raises(InvalidInput, match=r"a\.gguf, b\.gguf"):
        gguf.model_file(str(tmp_path))


def test_a_folder_without_a_model_and_a_missing_path_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"holds no \.gguf"):
        gguf.model_file(str(tmp_path))
    with pytest.raises(InvalidInput, match="does not exist"):
        gguf.model_file(str(tmp_path / "nothing"))


def test_a_model_in_parts_is_its_first_part_and_all_are_checked(tmp_path: Path) -> None:
    first, second = (written(tmp_path, whole(ARCHITECTURE, CONTEXT), f"m-0000{n}-of-00002.gguf") for n in (1, 2))
    assert gguf.model_file(str(tmp_path)) == first
    both = gguf.check_model(str(tmp_path))
    assert (both.context_length, both.size) == (8192, first.stat().st_size + second.stat().st_size)
    with pytest.raises(InvalidInput, match="part 2 of a model in 2 parts"):
        gguf.check_model(str(second))
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(InvalidInput, match=r"m-00002-of-00002\.gguf is .* cut short"):
        gguf.check_model(str(first))
    second.unlink()
    with pytest.raises(InvalidInput, match=r"m-00002-of-00002\.gguf is missing"):
        gguf.check_model(str(first))


def number(name: str, value: int) -> Fact:
    return f"llama.{name}", U32, struct.pack("<I", value)


ATTENTION = (
    number("block_count", 8),
    number("embedding_length", 256),
    number("attention.head_count", 4),
)


@pytest.mark.parametrize(
    ("facts", "cache"),
    [
        ((), gguf.Cache(8 * 4 * 64, 8 * 4 * 64, None)),
        ((number("attention.head_count_kv", 2),), gguf.Cache(8 * 2 * 64, 8 * 2 * 64, None)),
        (
            (number("attention.key_length", 32), number("attention.value_length", 16)),
            gguf.Cache(8 * 4 * 32, 8 * 4 * 16, None),
        ),
        (
            (("llama.attention.head_count_kv", ARRAY, struct.pack("<IQ8I", U32, 8, 2, 0, 0, 0, 2, 0, 0, 0)),),
            gguf.Cache(4 * 64, 4 * 64, None),
        ),
        ((number("full_attention_interval", 4),), gguf.Cache(2 * 4 * 64, 2 * 4 * 64, None)),
        ((number("attention.sliding_window", 512),), gguf.Cache(8 * 4 * 64, 8 * 4 * 64, 512)),
        (
            (
                number("attention.head_count_kv", 1),
                number("attention.kv_lora_rank", 512),
                number("attention.key_length", 576),
                number("attention.value_length", 512),
            ),
            gguf.Cache(8 * 576, 0, None),
        ),
        ((("llama.attention.causal", BOOL, b"\0"),), None),
        ((number("block_count", 2**31),), None),
    ],
)
def test_what_is_kept_of_a_token(tmp_path: Path, facts: tuple[Fact, ...], cache: gguf.Cache | None) -> None:
    header = gguf.check_model(str(written(tmp_path, whole(ARCHITECTURE, *ATTENTION, *facts))))
    assert header.cache == cache


def test_without_the_sizes_of_the_attention_nobody_knows(tmp_path: Path) -> None:
    assert gguf.check_model(str(written(tmp_path, whole(ARCHITECTURE, *ATTENTION[:2])))).cache is None


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ((ARCHITECTURE,), "model"),
        ((ARCHITECTURE, ("general.type", STRING, text("adapter"))), "adapter"),
        ((("general.architecture", STRING, text("clip")),), "mmproj"),
    ],
)
def test_what_the_file_is(tmp_path: Path, facts: tuple[Fact, ...], kind: str) -> None:
    assert gguf.check_model(str(written(tmp_path, whole(*facts)))).kind == kind


def test_the_words_of_a_model(tmp_path: Path) -> None:
    listed = ("tokenizer.ggml.tokens", ARRAY, words("a", "你好"))
    other = ("tokenizer.ggml.merges", ARRAY, words("x y"))
    assert gguf.vocabulary(str(written(tmp_path, whole(ARCHITECTURE, other, listed)))) == [b"a", "你好".encode()]
    assert gguf.vocabulary(str(written(tmp_path, whole(ARCHITECTURE, other)))) == []


@pytest.mark.parametrize(
    ("asked", "trained", "tokens"),
    [(None, 8192, 4096), (None, 512, 512), (0, 8192, 8192), (9000, 8192, 8192), (64, 8192, 64)],
)
def test_the_context_of_a_slot(tmp_path: Path, asked: int | None, trained: int, tokens: int) -> None:
    header = gguf.check_model(str(written(tmp_path, whole(ARCHITECTURE, number("context_length", trained)))))
    assert gguf.slot_context(header, asked) == tokens
    assert gguf.slot_context(gguf.check_model(str(written(tmp_path, whole(ARCHITECTURE)))), None) == 4096


def test_the_table_of_types_agrees_with_ggml() -> None:
    sizes = {int(kind): size for kind, size in reference.GGML_QUANT_SIZES.items()}
    assert {kind: sizes[kind] for kind in gguf.BLOCKS} == gguf.BLOCKS
