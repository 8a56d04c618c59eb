"""Reading the folder of a funasr model without funasr: what it is, how large, and whether all of it is there.

``configuration.json`` names the other files, in ``file_path_metas``; older models have none, and fixed names.
``config.yaml`` says under ``model`` of which class it is. Standard library and ``errors.py`` only, as ``hf_folder.py``,
which uses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from byzerllm.engines.hf_weights import LFS_POINTER, bad, lfs_pointer, read_bin, read_json, unreadable
from byzerllm.errors import InvalidInput

SENSEVOICE, VAD = "SenseVoiceSmall", "FsmnVADStreaming"
INDEX, CONFIG, WEIGHTS, NORMALISATION, TOKENS = "configuration.json", "config.yaml", "model.pt", "am.mvn", "bpe.model"
_NAMES = "file_path_metas"
_MODEL = re.compile(r"""^model: *["']?(\w+)""", re.MULTILINE)
_WHOLE = "Download the whole model into one folder."


def is_sensevoice(path: str) -> bool:
    """Whether it is the folder of a SenseVoice model, whole or not."""
    folder = Path(path).expanduser()
    try:
        return (folder / CONFIG).is_file() and _class(folder / CONFIG) == SENSEVOICE
    except (InvalidInput, OSError):
        return False


def weight_bytes(path: str, cls: str, param: str = "model_path") -> int:
    """Bytes of the weights of a model of the class ``cls``, all of whose files are there.

    Raises:
        InvalidInput: ``path`` is no such folder, or a file is missing or cut short; ``param`` is what named it.
    """
    try:
        return _weight_bytes(Path(path).expanduser(), cls)
    except InvalidInput as error:
        error.param = param
        raise


def _weight_bytes(folder: Path, cls: str) -> int:
    if not folder.is_dir():
        raise bad(f"{folder} is no folder." if folder.exists() else f"{folder} does not exist.")
    names = _names(folder, cls)
    config = folder / names["config"]
    if not config.exists():
        raise bad(f"{folder} has no {names['config']}: it is no folder of a funasr model.", _WHOLE)
    found = _class(config)
    if found != cls:
        raise bad(f"{folder} holds a model of funasr's class {found or '(none)'}, not {cls}.")
    for name in _files(names):
        if not (folder / name).exists():
            raise bad(f"{folder} has no {name}.", _WHOLE)
    return sum(read_bin(folder / names["init_param"]).values())


def _names(folder: Path, cls: str) -> Mapping[str, Any]:
    """The names of the model's files, by funasr's names for what is in them."""
    tokens = {"tokenizer_conf": {"bpemodel": TOKENS}} if cls == SENSEVOICE else {}
    fixed = {"init_param": WEIGHTS, "config": CONFIG, "frontend_conf": {"cmvn_file": NORMALISATION}, **tokens}
    if not (folder / INDEX).exists():
        return fixed
    names = read_json(folder / INDEX).get(_NAMES)
    if not isinstance(names, dict):
        raise bad(f"{folder / INDEX} has no {_NAMES}, which name the model's files.", "Download it again.")
    for name in ("init_param", "config"):
        if not isinstance(names.get(name), str):
            raise bad(f"{folder / INDEX} names no {name} under {_NAMES}.", "Download it again.")
    return names


def _files(names: Mapping[str, Any]) -> Iterator[str]:
    for value in names.values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _files(value)


def _class(config: Path) -> str:
    """The class that a ``config.yaml`` names; empty if none.

    Raises:
        InvalidInput: it cannot be read.
    """
    try:
        data = config.read_bytes()
    except OSError as error:
        raise unreadable(config, error) from None
    if data.startswith(LFS_POINTER):
        raise lfs_pointer(config)
    found = _MODEL.search(data.decode("utf-8", "replace"))
    return found[1] if found else ""
