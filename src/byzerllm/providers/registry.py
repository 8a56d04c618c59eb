"""Vendors as data: one TOML table a type beside this file, and the parsing of ``saas.*`` parameters against it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from byzerllm.errors import InvalidInput
from byzerllm.spec import DeploymentSpec, Timeouts, as_text, parse_bool, parse_float, parse_int, resolve, unknown
from byzerllm.wire import check_wire
from byzerllm.wire.base import Task, Vendor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "saas."


class Param(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ``saas.*`` parameter: its kind and the one place it goes to (a request header, query or body field)."""

    kind: Literal["str", "int", "float", "bool"] = "str"
    help: str = ""
    secret: bool = False
    required: bool = False
    default: str | None = None
    header: str | None = None
    query: str | None = None
    body: str | None = None
    same_as: str | None = None  # an older name of another parameter
    ignored: bool = False  # accepted from older scripts, without effect

    @property
    def is_own(self) -> bool:
        """Whether it goes nowhere by itself: the wire format decides what becomes of it."""
        return not (self.header or self.query or self.body)


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One vendor. ``models_path`` is the free call that checks key, address and model ("" where there is none)."""

    type: str
    title: str
    wire: str
    base_url: str
    auth: Literal["bearer", "none"]
    verified: str  # the date on which these facts were checked
    aliases: tuple[str, ...] = ()
    default_model: str | None = None
    models_path: str = ""
    params: dict[str, Param] = {}
    capabilities: frozenset[str] = frozenset()
    models: dict[str, dict[str, Any]] = {}  # facts about models, by the beginning of their names


# What every vendor takes, whatever its format. Times are in seconds.
COMMON: dict[str, Param] = {
    "model": Param(help="the vendor's model id"),
    "base_url": Param(help="the API's address, up to and including its version, as in https://host/v1"),
    "timeout": Param(kind="float", help="longest silence of the upstream: until the first byte, and between two"),
    "connect_timeout": Param(kind="float", help="longest wait for a connection (10)"),
    "first_byte_timeout": Param(kind="float", help="longest wait for the first byte (600)"),
    "idle_timeout": Param(kind="float", help="longest silence inside an answer (300)"),
    "total_timeout": Param(kind="float", help="longest time for a whole answer (3600)"),
    "max_retries": Param(kind="int", help="further attempts before the first byte, on 408, 409, 429, 5xx (2)"),
    "proxies": Param(secret=True, help="http://[user:password@]host:port of an HTTP proxy"),
    "local_address": Param(help="local address to connect from"),
    "ca_file": Param(help="PEM file with further certificate authorities"),
}


@dataclass(frozen=True)
class SaasOptions:
    """A SaaS instance's parameters, checked, with every reference resolved: it holds secrets, and is not kept."""

    provider: Provider
    base_url: str
    model: str
    api_key: str
    timeouts: Timeouts
    max_retries: int
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)  # the vendor's own that go nowhere else
    proxy: str = ""
    local_address: str = ""
    ca_file: str = ""
    warnings: tuple[str, ...] = ()

    def vendor(self) -> Vendor:
        """What a translated format needs to know of this instance."""
        return Vendor(
            self.model, self.provider.title, dict(self.params), self.provider.capabilities, self.provider.models
        )

    @property
    def task(self) -> Task:
        """Embedding where the model's name says so, as in the older tool; chat otherwise."""
        return Task.EMBEDDING if "embedding" in self.model.lower() else Task.CHAT


@functools.cache
def providers() -> dict[str, Provider]:
    """Every vendor table by type and alias."""
    found: dict[str, Provider] = {}
    for entry in resources.files("byzerllm.providers").iterdir():
        if entry.name.endswith(".toml"):
            provider = msgspec.convert(tomllib.loads(entry.read_text("utf-8")), Provider)
            check_wire(provider.wire)
            for name in (provider.type, *provider.aliases):
                found[name] = provider
    return found


def provider(kind: str) -> Provider:
    """The vendor of ``saas/<kind>``.

    Raises:
        InvalidInput: there is none; the nearest is named.
    """
    known = providers()
    if kind not in known:
        raise unknown("model type", f"saas/{kind}", [f"saas/{k}" for k in known], param="pretrained_model_type")
    return known[kind]


def secret_params(kind: str) -> frozenset[str]:
    """Full names of the vendor's secret parameters, for masking."""
    params = COMMON | provider(kind).params
    return frozenset(PREFIX + name for name, param in params.items() if param.secret)


def parse(spec: DeploymentSpec, environ: Mapping[str, str]) -> SaasOptions:
    """Check a SaaS spec's parameters against its vendor's table; ``env:`` and ``file:`` values are resolved first.

    Raises:
        InvalidInput: unknown type or parameter (the nearest is named), a missing or malformed one, or a reference to
            what is not there.
    """
    vendor = provider(spec.kind)
    params = COMMON | vendor.params
    values, warnings = _values(spec, params, environ)
    base_url = _checked_url("saas.base_url", values.get("base_url") or vendor.base_url).rstrip("/")
    model = values.get("model") or (vendor.default_model if base_url == vendor.base_url else None)
    if not model:
        raise InvalidInput("saas.model is missing: name the vendor's model.", param="saas.model")
    return SaasOptions(
        provider=vendor,
        base_url=base_url,
        model=model,
        api_key=values.get("api_key", ""),
        timeouts=_timeouts(values),
        max_retries=parse_int("saas.max_retries", values.get("max_retries", "2"), 0),
        headers={p.header: values[n] for n, p in params.items() if p.header and n in values},
        query={p.query: values[n] for n, p in params.items() if p.query and n in values},
        body={p.body: _json_value(PREFIX + n, p, values[n]) for n, p in params.items() if p.body and n in values},
        params={n: values[n] for n, p in vendor.params.items() if n in values and n != "api_key" and p.is_own},
        proxy=values.get("proxies", ""),
        local_address=values.get("local_address", ""),
        ca_file=values.get("ca_file", ""),
        warnings=tuple(warnings),
    )


def _values(
    spec: DeploymentSpec, params: Mapping[str, Param], environ: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    values: dict[str, str] = {}
    warnings: list[str] = []
    for key, given in spec.infer_params.items():
        name = key.removeprefix(PREFIX)
        if name not in params or not key.startswith(PREFIX):
            raise unknown("parameter", key, [PREFIX + n for n in params], param=key)
        param = params[name]
        if param.ignored:
            warnings.append(f"{key} has no effect ({param.help})")
            continue
        text = resolve(key, given, environ)
        typed = _typed(key, param, text)
        if param.kind == "bool":  # "yes" and "on" are for people
            text = as_text(typed)
        target = param.same_as or name
        if target in values and values[target] != text:
            raise InvalidInput(f"{PREFIX}{target} is given twice, once as {key}.", param=key)
        values[target] = text
    for name, param in params.items():
        if param.default is not None:
            values.setdefault(name, param.default)
        if param.required and not values.get(name):
            raise InvalidInput(
                f"{PREFIX}{name} is missing: {spec.pretrained_model_type} needs it ({param.help}).",
                hint=f"Add --infer_params {PREFIX}{name}=...",
                param=PREFIX + name,
            )
    return values, warnings


def _typed(key: str, param: Param, text: str) -> str | int | float | bool:
    if param.kind == "int":
        return parse_int(key, text, 0)
    if param.kind == "float":
        return parse_float(key, text, 0)
    if param.kind == "bool":
        return parse_bool(key, text)
    return text


def _json_value(key: str, param: Param, text: str) -> str:
    """The parameter as JSON text, ready to stand in a request body."""
    return msgspec.json.encode(_typed(key, param, text)).decode()


def _timeouts(values: Mapping[str, str]) -> Timeouts:
    def seconds(name: str, fallback: float) -> float:
        text = values.get(name)
        return parse_float(PREFIX + name, text, 0.001) if text else fallback

    default = Timeouts()
    silence = seconds("timeout", 0)
    return Timeouts(
        connect=seconds("connect_timeout", min(silence or default.connect, default.connect)),
        first_byte=seconds("first_byte_timeout", silence or default.first_byte),
        idle=seconds("idle_timeout", silence or default.idle),
        total=seconds("total_timeout", default.total),
    )


def _checked_url(name: str, url: str) -> str:
    if url.startswith("builtin:"):
        return url
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        valid = valid and not (parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:  # a port that is no number, or half an IPv6 address
        valid = False
    if not valid:
        raise InvalidInput(f"{name}={url!r} is no http(s) address such as https://host/v1.", param=name)
    return url
