"""The ``saas.*`` parameters of a deployment, checked against its vendor's table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import msgspec

from byzerllm.errors import InvalidInput
from byzerllm.providers.proxies import environment_proxy
from byzerllm.providers.registry import PREFIX, provider, shadowing
from byzerllm.providers.schema import STREAM_OPTIONS, Param, Provider, fill, known_params, placeholders
from byzerllm.spec import DeploymentSpec, Timeouts, as_text, parse_bool, parse_float, parse_int, resolve, unknown
from byzerllm.wire import MEDIA, WIRES, media_format
from byzerllm.wire.base import Task, Vendor

_HEADER = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
_USER_INFO = re.compile(r"//[^/]*@")
_OURS = frozenset(("host", "content-length", "content-type", "transfer-encoding", "connection"))


@dataclass(frozen=True, repr=False)
class SaasOptions:
    """A SaaS instance's parameters, checked, with every reference resolved: it holds secrets, and is not kept.

    ``api_key`` may be several keys, comma-separated: ``per_key`` has the options with each. ``own_url`` is the address
    in the vendor's table. ``body`` are top-level fields as JSON text for requests that do not set them.
    ``asks_usage``: streams are asked for their tokens where the client does not.
    """

    provider: Provider
    base_url: str
    model: str
    api_key: str
    timeouts: Timeouts
    max_retries: int
    own_url: str = ""
    asks_usage: bool = False
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
            self.model,
            self.provider.title,
            dict(self.params),
            self.provider.capabilities,
            self.provider.models,
            self.asks_usage,
        )

    def per_key(self) -> list[SaasOptions]:
        """The same options with each one of the keys, in the order given.

        Raises:
            InvalidInput: the secrets that belong to the keys are not as many.
        """
        keys = _listed(self.api_key)
        name = self.provider.pair
        secrets = _listed(self.params.get(name, "")) if name else []
        if len(keys) < 2 and len(secrets) < 2:
            return [self]
        if not name or not secrets:
            return [replace(self, api_key=key) for key in keys]
        if len(keys) != len(secrets):
            raise InvalidInput(
                f"saas.api_key has {len(keys)} values and {PREFIX}{name} has {len(secrets)}: one of each belong "
                "together.",
                param=PREFIX + name,
            )
        pairs = zip(keys, secrets, strict=True)
        return [replace(self, api_key=key, params={**self.params, name: secret}) for key, secret in pairs]

    def secrets(self) -> tuple[str, ...]:
        """The values that nobody is to see: the key, and the vendor's other secret parameters."""
        names = [n for n, p in self.provider.params.items() if p.secret and n != "api_key"]
        return tuple(filter(None, (*_listed(self.api_key), *(self.params.get(n, "") for n in names))))

    @property
    def bearer(self) -> str:
        """The token: the key, joined with the secret that belongs to it where there is one."""
        secret = self.params.get(self.provider.pair, "") if self.provider.pair else ""
        return f"{self.api_key}:{secret}" if self.api_key and secret else self.api_key

    @property
    def task(self) -> Task:
        """What the vendor's table says of the model, or what its format is for; else embedding (as in the older tool)
        or rerank where the model's name says so; chat otherwise."""
        known = self.vendor().fact("task")
        if known is not None:
            return Task(known)
        if self.provider.wire in MEDIA:
            return next(iter(media_format(self.provider.wire).tasks))
        name = self.model.lower()
        return Task.EMBEDDING if "embedding" in name else Task.RERANK if "rerank" in name else Task.CHAT


def parse(spec: DeploymentSpec, environ: Mapping[str, str]) -> SaasOptions:
    """Check a SaaS spec's parameters against its vendor's table; ``env:`` and ``file:`` values are resolved first.

    Raises:
        InvalidInput: unknown type or parameter (the nearest is named), a missing or malformed one, a reference to
            what is not there, or a user's table that cannot be used.
    """
    vendor = _chosen(provider(spec.kind), spec, environ)
    params = known_params(vendor)
    values, warnings = _values(spec, vendor, params, environ)
    own_url = _own_url(vendor, spec, values)
    base_url = _checked_url(vendor, values.get("base_url") or own_url)
    model = values.get("model") or (fill(vendor.default_model or "", values) if base_url == own_url else "")
    if not model:
        raise InvalidInput("saas.model is missing: name the vendor's model.", param="saas.model")
    file = shadowing(spec.kind)
    if file:
        warnings.append(f"saas/{spec.kind} is what {file} says, not the built-in type.")
    proxy = values["proxies"] if "proxies" in values else environment_proxy(base_url, environ)
    return SaasOptions(
        provider=vendor,
        base_url=base_url,
        model=model,
        api_key=values.get("api_key", ""),
        timeouts=_timeouts(values),
        max_retries=parse_int("saas.max_retries", values.get("max_retries", "2"), 0),
        own_url=own_url,
        asks_usage=_asks_usage(vendor, values, base_url, own_url),
        headers={p.header: values[n] for n, p in params.items() if p.header and n in values} | _extra_headers(values),
        query={p.query: values[n] for n, p in params.items() if p.query and n in values},
        body=_body(params, values),
        params={n: values[n] for n, p in vendor.params.items() if n in values and n != "api_key" and p.is_own},
        proxy=proxy,
        local_address=values.get("local_address", ""),
        ca_file=values.get("ca_file", ""),
        warnings=tuple(warnings),
    )


def _chosen(vendor: Provider, spec: DeploymentSpec, environ: Mapping[str, str]) -> Provider:
    """The vendor in the format that ``saas.wire`` names, or that a given parameter belongs to."""
    if not vendor.wires:
        return vendor
    given = [key.removeprefix(PREFIX) for key in spec.infer_params if key.startswith(PREFIX)]
    selected = [p.selects for n, p in vendor.params.items() if p.selects and n in given]
    if "wire" in given:
        name = resolve("saas.wire", spec.infer_params["saas.wire"], environ)
    elif "model" in given:
        model = resolve("saas.model", spec.infer_params["saas.model"], environ)
        name = _wire_of(vendor, model) or next(iter(selected), vendor.wire)
    else:
        name = next(iter(selected), _wire_of(vendor, vendor.default_model or "") or vendor.wire)
    if name != vendor.wire and name not in vendor.wires:
        raise unknown("format", f"saas.wire={name}", [f"saas.wire={w}" for w in _formats(vendor)], param="saas.wire")
    return vendor.speaking(name)


def _wire_of(vendor: Provider, model: str) -> str | None:
    """The format of a model that does not speak the vendor's first one, as the table says."""
    wire: str | None = Vendor(model, models=vendor.models).fact("wire")
    return wire


def _formats(vendor: Provider) -> list[str]:
    return [vendor.wire, *(name for name in vendor.wires if name != vendor.wire)]


def _values(
    spec: DeploymentSpec, vendor: Provider, params: Mapping[str, Param], environ: Mapping[str, str]
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
        if "," in text and target in ("api_key", vendor.pair):  # without the empty ones of a list with a comma too many
            text = ",".join(_listed(text))
        if target in values and values[target] != text:
            raise InvalidInput(f"{PREFIX}{target} is given twice, once as {key}.", param=key)
        values[target] = text
    for name, param in params.items():
        if param.default is not None:
            values.setdefault(name, param.default)
        if param.required and not values.get(name):
            raise _missing(spec, name, param)
    return values, warnings


def _missing(spec: DeploymentSpec, name: str, param: Param) -> InvalidInput:
    return InvalidInput(
        f"{PREFIX}{name} is missing: {spec.pretrained_model_type} needs it ({param.help}).",
        hint=f"Add --infer_params {PREFIX}{name}=...",
        param=PREFIX + name,
    )


def _own_url(vendor: Provider, spec: DeploymentSpec, values: dict[str, str]) -> str:
    """The table's address for these parameters, or "" where the user gives one and what it needs is missing."""
    url, region = vendor.base_url, values.get("region")
    if region:
        if region not in vendor.regions:
            raise unknown(
                "region", f"saas.region={region}", [f"saas.region={r}" for r in vendor.regions], param="region"
            )
        url = vendor.regions[region]
    for name in placeholders(url):
        if not values.get(name):
            if values.get("base_url"):
                return ""
            raise _missing(spec, name, vendor.params[name])
    return fill(url, {name: values[name].rstrip("/") for name in placeholders(url)})


def _checked_url(vendor: Provider, url: str) -> str:
    """Without a slash at its end, and without the call's own path where the user has given that too."""
    if url.startswith("builtin:"):
        return url.rstrip("/")
    schemes = ("ws", "wss") if vendor.base_url.startswith("ws") else ("http", "https")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in schemes and bool(parts.hostname) and (parts.port or 1) > 0
        valid = valid and not (parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:  # a port that is no number, or half an IPv6 address
        valid = False
    if not valid:
        shown = _USER_INFO.sub("//******@", url)  # it may hold a password
        raise InvalidInput(
            f"saas.base_url={shown!r} is no {schemes[0]}(s) address such as {schemes[1]}://host/v1.",
            param="saas.base_url",
        )
    url = url.rstrip("/")
    spoken = WIRES.get(vendor.wire)
    for path in [spoken.path(task) for task in Task] if spoken else []:
        url = url.removesuffix(path or "")
    return url


def _asks_usage(vendor: Provider, values: Mapping[str, str], base_url: str, own_url: str) -> bool:
    """As the user says, else where the vendor's documents have the question."""
    if "stream_usage" in values:
        return values["stream_usage"] == "true"
    if vendor.stream_usage == "own" and base_url not in (own_url, *vendor.regions.values()):
        return False
    return bool(vendor.stream_usage) and vendor.wire in STREAM_OPTIONS


def _typed(key: str, param: Param, text: str) -> Any:
    if param.kind == "int":
        return parse_int(key, text, 0)
    if param.kind == "float":
        return parse_float(key, text, 0)
    if param.kind == "bool":
        return parse_bool(key, text)
    if param.kind == "json":
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise InvalidInput(f"{key} must be JSON: {error}.", param=key) from None
    return text


def _body(params: Mapping[str, Param], values: Mapping[str, str]) -> dict[str, str]:
    """Body fields as JSON text; a parameter of its own goes before ``saas.extra_body``."""
    extra = _json_object("extra_body", values, msgspec.Raw)
    own = {
        p.body: msgspec.json.encode(_typed(PREFIX + n, p, values[n])).decode()
        for n, p in params.items()
        if p.body and n in values
    }
    return {name: bytes(value).decode() for name, value in extra.items()} | own


def _extra_headers(values: Mapping[str, str]) -> dict[str, str]:
    headers: dict[str, str] = _json_object("extra_headers", values, str)
    for name in headers:
        if name.lower() in _OURS or not _HEADER.fullmatch(name):
            raise InvalidInput(f"saas.extra_headers: the header {name!r} cannot be set.", param="saas.extra_headers")
    return headers


def _json_object(name: str, values: Mapping[str, str], kind: type) -> dict[str, Any]:
    try:
        found: dict[str, Any] = msgspec.json.decode(values.get(name) or "{}", type=dict[str, kind])  # type: ignore[valid-type]
    except msgspec.DecodeError as error:  # the message does not repeat the value: it may hold a secret
        raise InvalidInput(
            f"{PREFIX}{name} must be a JSON object: {error}.",
            hint=f'As in --infer_params \'{PREFIX}{name}={{"name": "value"}}\'',
            param=PREFIX + name,
        ) from None
    return found


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


def _listed(text: str) -> list[str]:
    return [part for part in (p.strip() for p in text.split(",")) if part]
