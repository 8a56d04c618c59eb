"""``--file``: flags from YAML, with ``ENV {{NAME}}`` for what is in the environment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from byzerllm.errors import InvalidInput
from byzerllm.spec import unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_ENV_PREFIX = re.compile(r"ENV\s+(?=.*\{\{.*\}\})", re.DOTALL)
_VARIABLE = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_NOT_SET = ("", "null", "~")


def load_flags(file: str, known: Iterable[str], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The flags that a file gives, by their names with ``_``; every value is text, or lists and mappings of text.

    Raises:
        InvalidInput: no such file, no YAML, an unknown flag, or a variable that is not set.
    """
    known = frozenset(known)
    found: dict[str, Any] = {}
    for key, value in _read(Path(file).expanduser()).items():
        name = key.replace("-", "_")
        if name == "file" or value in _NOT_SET:
            continue
        if name not in known:
            raise unknown(f"flag in {file}", key, known, param="file")
        found[name] = fill(value, f"{key} in {file}", os.environ if environ is None else environ)
    return found


def fill(value: Any, where: str, environ: Mapping[str, str]) -> Any:
    """``value`` with each text ``ENV ...{{NAME}}...`` in it, at any depth, filled in. ``ENVOY`` is just a word.

    Raises:
        InvalidInput: a variable is not set; the message says which, and ``where``.
    """
    if isinstance(value, dict):
        return {key: fill(item, f"{key} of {where}", environ) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, where, environ) for item in value]
    prefix = _ENV_PREFIX.match(value)
    if not prefix:
        return value

    def variable(match: re.Match[str]) -> str:
        name = match[1]
        if name not in environ:
            raise InvalidInput(
                f"{where}: the environment variable {name} is not set.",
                hint=f"Export {name} and run the command again.",
                param="file",
            )
        return environ[name]

    return _VARIABLE.sub(variable, value[prefix.end() :])


def _read(path: Path) -> dict[str, Any]:
    try:
        # BaseLoader makes no numbers, dates or booleans: a value stays what was typed, as on the command line.
        content = yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise InvalidInput(f"--file {path}: {error.strerror}.", param="file") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"--file {path} is not UTF-8 text.", param="file") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidInput(f"{path}{place}: this is no YAML: {error.problem}.", param="file") from None
    except yaml.YAMLError as error:
        raise InvalidInput(f"{path}: this is no YAML: {error}.", param="file") from None
    if not content:
        raise InvalidInput(f"--file {path} is empty.", param="file")
    if not isinstance(content, dict):
        raise InvalidInput(f"--file {path} must have one 'flag: value' a line.", param="file")
    return content
