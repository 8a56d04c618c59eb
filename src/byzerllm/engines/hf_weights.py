"""The weight files of a Hugging Face model folder: are all of them there and whole, and how much is in them?

Tensors are not read: of a safetensors file the header is, of a ``.bin`` file its size and its last bytes.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byzerllm.errors import InvalidInput

LFS_POINTER = b"version https://git-lfs"
_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
_MAX_JSON = 256 * 2**20

# Bytes of one element, by safetensors' names and by torch's.
DTYPE_BYTES: Mapping[str, float] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F4": 0.5,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
    "float64": 8, "float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip
# What an engine converts to the type that it computes in; anything narrower is quantised and stays as it is.
_CONVERTED = frozenset(("F64", "F32", "F16", "BF16"))
_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Weights:
    """The tensors of a model: bytes by type (safetensors' names; ``""`` where a file does not tell)."""

    bytes_by_dtype: Mapping[str, int]

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(self.bytes_by_dtype.values())

    @property
    def dtype(self) -> str:
        """Torch's name of the floating-point type that most of it has; empty where the files do not tell."""
        floats = {name: size for name, size in self.bytes_by_dtype.items() if name in _TORCH_NAMES}
        return _TORCH_NAMES[max(floats, key=lambda name: floats[name])] if floats else ""

    def loaded(self, width: float, stored: float) -> int:
        """Bytes in memory when floating-point numbers are held in ``width`` bytes each.

        ``stored`` is the width of those in files that do not tell.
        """
        total = 0.0
        for name, size in self.bytes_by_dtype.items():
            if name in _CONVERTED or not name:
                total += size * width / (DTYPE_BYTES[name] if name else stored)
            else:
                total += size
        return int(total)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InvalidInput: it cannot be read, is a Git LFS pointer, or holds something else.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise bad(f"{path} is too large for a JSON file of a model.")
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    if data.startswith(LFS_POINTER):
        raise lfs_pointer(path)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise bad(f"{path} is no JSON: {error}.", "Download it again.") from None
    if not isinstance(found, dict):
        raise bad(f"{path} holds no JSON object.", "Download it again.")
    return found


def read_weights(folder: Path, stem: str = "model") -> Weights | None:
    """The weights that lie in ``folder`` itself, not in folders below; None where there are none.

    Where the same weights lie there in several formats, those are read that the engines prefer: safetensors, and of
    these the files that begin with ``stem``.

    Raises:
        InvalidInput: a file is missing, cut short, or only a pointer to one.
    """
    for suffix, read in ((".safetensors", _read_safetensors), (".bin", read_bin)):
        files = _files(folder, stem, suffix)
        if files:
            total: Counter[str] = Counter()
            for file in files:
                total.update(read(file))
            return Weights(dict(total))
    return None


def _files(folder: Path, stem: str, suffix: str) -> list[Path]:
    if suffix == ".bin" and stem == "model":
        stem = "pytorch_model"
    index = folder / f"{stem}{suffix}.index.json"
    single = folder / f"{stem}{suffix}"
    if _exists(index) and not _exists(single):
        return _indexed(index)
    if _exists(single):
        return [single]
    others = sorted(file for file in folder.glob(f"*{suffix}") if not file.name.startswith(_NO_MODEL))
    return [file for file in others if file.name.startswith(stem)] or others


_NO_MODEL = ("adapter_", "training_args", "optimizer", "scheduler", "openvino_", ".")


def _indexed(index: Path) -> list[Path]:
    """The files that an index names."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise bad(f"{index} has no weight_map.", "Download it again.")
    files = [index.with_name(name) for name in sorted({str(name) for name in names.values()})]
    missing = [file for file in files if not file.exists()]
    if len(missing) == len(files):
        raise bad(f"{index} is there, but none of the {len(files)} files with weights that it names is.", _DOWNLOAD)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise bad(f"{missing[0]}{more} of the {len(files)} files that {index.name} names is missing.", _DOWNLOAD)
    return files


_DOWNLOAD = "Download the whole model into one folder."


def _exists(path: Path) -> bool:
    return os.path.lexists(path)  # a link to nothing is a file that is missing, and said to be


def _read_safetensors(path: Path) -> dict[str, int]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start == LFS_POINTER[:8]:
                raise lfs_pointer(path)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if 8 + length > size:
                raise _no_header(path, size, length)
            header = json.loads(file.read(length))
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError:
        raise _damaged(path) from None
    sizes: Counter[str] = Counter()
    end = 0
    try:
        for name, tensor in header.items():
            if name != "__metadata__":
                first, last = tensor["data_offsets"]
                sizes[str(tensor["dtype"])] += last - first
                end = max(end, last)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _damaged(path) from None
    if size < 8 + length + end:
        raise bad(
            f"{path} is {size} bytes, its header promises {8 + length + end}: the download was cut short.",
            "Download it again.",
        )
    return dict(sizes)


def _no_header(path: Path, size: int, length: int) -> InvalidInput:
    if length > _MAX_HEADER:
        return _damaged(path)
    return bad(f"{path} is {size} bytes and ends within its header: the download was cut short.", "Download it again.")


def _damaged(path: Path) -> InvalidInput:
    return bad(f"{path} is no safetensors file, or is damaged: its header makes no sense.", "Download it again.")


def read_bin(path: Path) -> dict[str, int]:
    """A file of ``torch.save``, which writes a ZIP file, whose list of contents is at its end.

    Raises:
        InvalidInput: it cannot be read, is cut short, or is only a pointer to one.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
            if start == LFS_POINTER:
                raise lfs_pointer(path)
            if not size or (start.startswith(b"PK") and not zipfile.is_zipfile(file)):
                raise bad(f"{path} ends before its list of contents: the download was cut short.", "Download it again.")
    except OSError as error:
        raise unreadable(path, error) from None
    return {"": size}


def lfs_pointer(path: Path) -> InvalidInput:
    return bad(f"{path} is a Git LFS pointer, not the file itself.", "Run git lfs pull in its folder.")


def unreadable(path: Path, error: OSError) -> InvalidInput:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return bad(f"{path} is a link to a file that is not there.", "Download it again.")
    return bad(f"Cannot read {path}: {error.strerror or error}.")


def bad(message: str, hint: str | None = None) -> InvalidInput:
    return InvalidInput(message, hint=hint, param="model_path")
