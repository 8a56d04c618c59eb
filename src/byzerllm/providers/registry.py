"""The vendors' tables: one TOML file a type beside this file, and the user's own in ``$BYZERLLM_HOME/providers``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import msgspec

from byzerllm.errors import InvalidInput
from byzerllm.providers.schema import Provider, check_table, known_params
from byzerllm.settings import Settings
from byzerllm.spec import unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "saas."


class _Tables(NamedTuple):
    found: dict[str, Provider]  # by type and alias
    broken: dict[str, InvalidInput]  # by the file's name without its suffix


@functools.cache
def providers() -> dict[str, Provider]:
    """Every built-in table by type and alias."""
    found: dict[str, Provider] = {}
    for entry in resources.files("byzerllm.providers").iterdir():
        if entry.name.endswith(".toml"):
            _add(found, read_table(entry.read_text("utf-8"), entry.name))
    return found


def read_table(text: str, where: str) -> Provider:
    """A table from its TOML text.

    Raises:
        InvalidInput: it is none; ``where`` and the reason are named.
    """
    try:
        table = msgspec.convert(tomllib.loads(text), Provider)
        check_table(table)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, InvalidInput) as error:
        raise InvalidInput(f"The vendor table {where} cannot be used: {error}") from None
    return table


def provider(kind: str) -> Provider:
    """The vendor of ``saas/<kind>``; a user's own table goes before a built-in one.

    Raises:
        InvalidInput: there is none (the nearest is named), or the user's table for it is broken.
    """
    own = _user_tables()
    if kind in own.broken:
        raise own.broken[kind]
    known = providers() | own.found
    if kind in known:
        return known[kind]
    error = unknown("model type", f"saas/{kind}", [f"saas/{k}" for k in known], param="pretrained_model_type")
    for broken in own.broken.values():  # it may be an alias in one of these
        error.message += f" {broken.message}"
    raise error


def is_vendor(kind: str) -> bool:
    """Whether there is a ``saas/<kind>``, built in or the user's own."""
    return kind in _user_tables().found or kind in providers()


def shadowing(kind: str) -> str | None:
    """The file of the user's table that stands before the built-in one of this type, or None."""
    own = _user_tables().found.get(kind)
    return str(_user_folder() / f"{own.type}.toml") if own is not None and kind in providers() else None


def secret_params(kind: str) -> frozenset[str]:
    """Full names of the vendor's secret parameters, in whatever format, for masking."""
    vendor = provider(kind)
    params = known_params(vendor)
    for variant in vendor.wires.values():
        params |= variant.params
    return frozenset(PREFIX + name for name, param in params.items() if param.secret)


def _user_folder() -> Path:
    return Settings.read().home / "providers"


def _user_tables() -> _Tables:
    """As the files are now: a vendor can be added while the server runs."""
    try:
        files = sorted(p for p in _user_folder().iterdir() if p.suffix == ".toml")
        stamps = [(path, path.stat().st_mtime_ns) for path in files]
    except FileNotFoundError:
        return _Tables({}, {})
    return _read_user_tables(tuple(stamps))


@functools.lru_cache(maxsize=2)
def _read_user_tables(files: Iterable[tuple[Path, int]]) -> _Tables:
    tables = _Tables({}, {})
    for path, _ in files:
        try:
            table = read_table(path.read_text("utf-8"), str(path))
            if table.type != path.stem:
                raise InvalidInput(
                    f"The vendor table {path} cannot be used: its type is {table.type!r}, so it must be named "
                    f"{table.type}.toml."
                )
        except InvalidInput as error:
            tables.broken[path.stem] = error
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            tables.broken[path.stem] = InvalidInput(f"The vendor table {path} cannot be read: {reason}.")
        else:
            _add(tables.found, table)
    return tables


def _add(found: dict[str, Provider], table: Provider) -> None:
    for name in (table.type, *table.aliases):
        found[name] = table
