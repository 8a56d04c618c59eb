"""What a user declares: the desired state of one instance, and the parsing of ``k=v`` parameters."""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from byzerllm.errors import InvalidInput

LoadBalance = Literal["lru", "round_robin", "least_busy"]
LOAD_BALANCE: tuple[str, ...] = get_args(LoadBalance)
MAX_WORKERS = 100_000
MASK = "******"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")
_NOT_CUSTOM = frozenset(("CPU", "GPU", "memory", "object_store_memory", "bundle"))  # Ray keeps these names to itself
_JSON = re.compile(r"[^\s={\[]+=\s*(?:\{.*\}|\[.*\])\s*", re.DOTALL)
_TRUE = frozenset(("true", "1", "yes", "on"))
_FALSE = frozenset(("false", "0", "no", "off"))


@dataclass(frozen=True)
class Timeouts:
    """Seconds: for the connection, until the answer's first byte, of silence inside it, and for the whole."""

    connect: float = 10.0
    first_byte: float = 600.0
    idle: float = 300.0
    total: float = 3600.0


class DeploymentSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The desired state of one instance, as the flags of ``byzerllm deploy`` say it.

    ``infer_params`` keeps every value as the string that was typed; the provider or engine gives it a type.
    ``worker_concurrency`` is None when the user left it to the engine. ``resources`` are what each worker takes of the
    custom resources of a Ray cluster.
    """

    name: str
    pretrained_model_type: str = "custom/llama2"
    infer_backend: str = ""
    model_path: str = ""
    num_workers: int = 1
    worker_concurrency: int | None = None
    cpus_per_worker: float = 0.01
    gpus_per_worker: float = 0.0
    resources: dict[str, float] = msgspec.field(default_factory=dict)
    infer_params: dict[str, str] = msgspec.field(default_factory=dict)
    load_balance: LoadBalance = "lru"
    max_queue: int = 1024
    queue_timeout: float = 300.0

    @property
    def is_saas(self) -> bool:
        return self.pretrained_model_type.startswith("saas/")

    @property
    def kind(self) -> str:
        """The type's last part: ``openai`` of ``saas/openai``, ``auto`` of ``custom/auto`` or of a bare ``auto``."""
        return self.pretrained_model_type.rpartition("/")[2]


def check_spec(spec: DeploymentSpec) -> None:
    """Refuse values that no deployment can have, whatever its type.

    Raises:
        InvalidInput: names the flag and what it takes.
    """
    if not _NAME.fullmatch(spec.name):
        raise InvalidInput(
            f"--model {spec.name[:140]!r} is no plain name: use at most 128 letters, digits, '_', '-' and '.', "
            "a letter or digit first.",
            param="model",
        )
    family, _, kind = spec.pretrained_model_type.rpartition("/")
    if family not in ("saas", "custom", "") or not kind:
        raise InvalidInput(
            f"--pretrained_model_type {spec.pretrained_model_type!r} must be saas/TYPE or custom/TYPE.",
            param="pretrained_model_type",
        )
    _at_least("num_workers", spec.num_workers, 1, MAX_WORKERS)
    if spec.worker_concurrency is not None:
        _at_least("worker_concurrency", spec.worker_concurrency, 1)
    _at_least("cpus_per_worker", spec.cpus_per_worker, 0)
    _at_least("gpus_per_worker", spec.gpus_per_worker, 0)
    for name, amount in spec.resources.items():
        _check_resource(name, amount)
    _at_least("max_queue", spec.max_queue, 0)
    _at_least("queue_timeout", spec.queue_timeout, 0)


def _check_resource(name: str, amount: float) -> None:
    if not name or name in _NOT_CUSTOM:
        raise InvalidInput(
            f"--resources {name}={amount:g}: that is no custom resource of a Ray cluster.",
            hint="Use --cpus_per_worker and --gpus_per_worker." if name in ("CPU", "GPU") else None,
            param="resources",
        )
    _at_least(f"resources {name}", amount, 0.0001)  # the least that Ray counts


def _at_least(flag: str, value: float, low: float, high: float = 1e9) -> None:
    if not math.isfinite(value):
        raise InvalidInput(f"--{flag} {value} must be a number.", param=flag)
    if not low <= value <= high:
        upper = f" and at most {high:g}" if high < 1e9 else ""
        raise InvalidInput(f"--{flag} {value:.15g} must be at least {low:g}{upper}.", param=flag)


def parse_params(tokens: Iterable[str]) -> dict[str, str]:
    """``k=v`` words as a dict; a token may hold several, quoted as in a shell. A value that is a JSON object or
    list keeps its quotes.

    Raises:
        InvalidInput: a word without ``=`` or without a name.
    """
    params: dict[str, str] = {}
    for token in tokens:
        try:
            is_json = _JSON.fullmatch(token) and _is_json(token.partition("=")[2])
            words = [token] if is_json else shlex.split(token)
        except ValueError as error:
            raise InvalidInput(f"--infer_params {token!r}: {error}.", param="infer_params") from None
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or not key:
                raise InvalidInput(f"--infer_params {word!r} is not of the form name=value.", param="infer_params")
            params[key] = value
    return params


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True


def as_text(value: Any) -> str:
    """A YAML or JSON scalar as it would have been typed on the command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def parse_bool(name: str, text: str) -> bool:
    """``true/false/1/0/yes/no/on/off`` in any case.

    Raises:
        InvalidInput: anything else.
    """
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise InvalidInput(f"{name}={text!r} must be true or false.", param=name)


def parse_int(name: str, text: str, low: int | None = None) -> int:
    """A whole number, at least ``low``.

    Raises:
        InvalidInput: no whole number, or too small.
    """
    try:
        value = int(text)
    except ValueError:
        raise InvalidInput(f"{name}={text!r} must be a whole number.", param=name) from None
    if low is not None and value < low:
        raise InvalidInput(f"{name}={text} must be at least {low}.", param=name)
    return value


def parse_float(name: str, text: str, low: float | None = None) -> float:
    """A finite number, at least ``low``.

    Raises:
        InvalidInput: no number, or too small.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise InvalidInput(f"{name}={text!r} must be a number.", param=name)
    if low is not None and value < low:
        raise InvalidInput(f"{name}={text} must be at least {low:g}.", param=name)
    return value


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` was probably meant to be, or None."""
    words = sorted(known)
    found = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if found:
        return found[0]
    tails = [k for k in words if k.rpartition(".")[2] == word.rpartition(".")[2]]
    return tails[0] if tails else None


def unknown(what: str, word: str, known: Iterable[str], *, param: str) -> InvalidInput:
    """The error for a name that is not among ``known``: shows the nearest one, or all of a short list."""
    names = sorted(known)
    close = nearest(word, names)
    if close:
        hint = f"Did you mean {close}?"
    elif len(names) <= 40:
        hint = f"Known: {', '.join(names) or 'none'}."
    else:
        hint = f"There are {len(names)} known names; see the documentation."
    return InvalidInput(f"Unknown {what} {word!r}.", hint=hint, param=param)


def is_reference(value: str) -> bool:
    """Whether a parameter's value only points to where the real one is."""
    return value.startswith(("env:", "file:"))


def resolve(name: str, value: str, environ: Mapping[str, str] | None = None) -> str:
    """The value itself, or what ``env:NAME`` or ``file:PATH`` points to at this moment.

    Raises:
        InvalidInput: the variable is not set or empty, or the file cannot be read.
    """
    if value.startswith("env:"):
        variable = value[4:]
        found = (os.environ if environ is None else environ).get(variable)
        if not found:
            raise InvalidInput(
                f"{name}={value}: the environment variable {variable} is not set.",
                hint=f"Deploy it from a shell that has {variable}, or use file:PATH.",
                param=name,
            )
        return found
    if value.startswith("file:"):
        path = Path(value[5:]).expanduser()
        try:
            text = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise InvalidInput(f"{name}={value}: cannot read {path}: {reason}.", param=name) from None
        if not text:
            raise InvalidInput(f"{name}={value}: the file {path} is empty.", param=name)
        return text
    return value


def mask(params: Mapping[str, str], secret: Iterable[str]) -> dict[str, str]:
    """A copy fit to be shown: secret values are starred, references to secrets are not secret."""
    hidden = frozenset(secret)
    return {k: MASK if k in hidden and v and not is_reference(v) else v for k, v in params.items()}


_LOOKS_SECRET = re.compile(r"key|token|secret|password|credential|auth|extra_headers|app_code", re.IGNORECASE)


def looks_secret(name: str) -> bool:
    """Whether a parameter is masked where its provider is not known (the command's own banner)."""
    return bool(_LOOKS_SECRET.search(name))


def differences(current: DeploymentSpec, requested: DeploymentSpec) -> list[tuple[str, str, str]]:
    """``(flag, current, requested)`` for each thing that differs; parameters are listed one by one."""
    rows: list[tuple[str, str, str]] = []
    for field in DeploymentSpec.__struct_fields__:
        old, new = getattr(current, field), getattr(requested, field)
        if field == "infer_params":
            rows.extend(
                (key, old.get(key, "(not set)"), new.get(key, "(not set)"))
                for key in sorted(old.keys() | new.keys())
                if old.get(key) != new.get(key)
            )
        elif old != new:
            rows.append((field, as_text(old), as_text(new)))
    return rows
