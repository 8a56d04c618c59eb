"""From a vendor's checked parameters, or a running engine, to the ``Upstream`` that the relay uses."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec

from byzerllm.control.signing import signer
from byzerllm.control.tokens import Token
from byzerllm.engines.base import EngineOptions
from byzerllm.providers.parse import SaasOptions
from byzerllm.relay.target import Target, header_lines, merged, parse_target, request_head, standard_headers
from byzerllm.routing.worker import Framed, Media, PassThrough, Translated, Upstream
from byzerllm.runtime.base import EngineProcess
from byzerllm.spec import Timeouts
from byzerllm.wire import ENGINE_WIRES, MEDIA, WIRES, media_format, translator
from byzerllm.wire.base import FrameTranslator, Task, Wire

_VERSION = re.compile(r"/v\d[^/]*(/|$)")
_JSON = b"Content-Type: application/json\r\n"


def saas_upstreams(options: SaasOptions, base_url: str) -> list[Upstream]:
    """The vendor's endpoint with each of the instance's keys.

    Raises:
        InvalidInput: an address that cannot be used, or a value that cannot stand in a header.
    """
    return [_saas_upstream(own, base_url) for own in options.per_key()]


def _saas_upstream(options: SaasOptions, base_url: str) -> Upstream:
    end = _endpoint(options, base_url)
    defaults = {name: msgspec.Raw(text.encode()) for name, text in options.body.items()}
    spoken = WIRES.get(options.provider.wire)
    if spoken is None:
        return _foreign(options, end, defaults)
    voice = options.vendor().fact("voice")
    if voice is not None:
        defaults.setdefault("voice", msgspec.Raw(msgspec.json.encode(voice)))
    return PassThrough(
        wire=spoken,
        target=end.target,
        model=options.model,
        timeouts=options.timeouts,
        max_retries=options.max_retries,
        heads=_heads(spoken, end, _tasks(options)),
        defaults=defaults,
        asks_usage=options.asks_usage,
        secrets=options.secrets(),
    )


def _foreign(options: SaasOptions, end: _Endpoint, defaults: Mapping[str, msgspec.Raw]) -> Media | Translated:
    sign = signer(options.provider.auth, options)
    common: dict[str, Any] = {
        "target": end.target,
        "model": options.model,
        "timeouts": options.timeouts,
        "max_retries": options.max_retries,
        "vendor": options.vendor(),
        "task": options.task,
        "prefix": end.path,
        "query": urlencode(end.query),
        "headers": end.headers,
        "defaults": defaults,
        "secrets": options.secrets(),
        "sign": sign,
        "renew": sign.renew if isinstance(sign, Token) else None,
    }
    name = options.provider.wire
    if name in MEDIA:
        return Media(wire=media_format(name), **common)
    wire = translator(name)
    if isinstance(wire, FrameTranslator):
        return Framed(wire=wire, **common)
    return Translated(wire=wire, **common)


def _tasks(options: SaasOptions) -> Collection[Task]:
    """What a model is not for is refused here; of a chat model its vendor tells what else it has."""
    return {*(options.provider.tasks or Task), options.task} if options.task is Task.CHAT else {options.task}


def models_requests(options: SaasOptions, base_url: str) -> tuple[Target, list[tuple[str, bytes]]]:
    """The vendor's free call that lists its models, as path and whole request; then, where the user gave an address
    without a version, the same one below ``/v1``."""
    end = _endpoint(options, base_url)
    lines = _lines(end)
    own, _, own_query = options.provider.models_path.partition("?")
    query = "&".join(filter(None, (own_query, urlencode(end.query))))
    paths = [posixpath.normpath(end.path + own)]
    if options.base_url != options.own_url and not _VERSION.search(end.path):
        paths.append(f"{end.path}/v1{own}")
    return end.target, [
        (path, request_head("GET", end.target, path + (f"?{query}" if query else ""), lines) + b"\r\n")
        for path in paths
    ]


def engine_upstream(process: EngineProcess, model: str, timeouts: Timeouts, options: EngineOptions) -> PassThrough:
    """The private endpoint of an engine process. The retries bridge the moment until a dead process is noticed."""
    spoken = ENGINE_WIRES[options.wire]
    target, path = parse_target(process.base_url)
    end = _Endpoint(target, path, {"Authorization": f"Bearer {process.token}"}, {})
    return PassThrough(
        wire=spoken,
        target=target,
        model=model,
        timeouts=timeouts,
        max_retries=3,
        heads=_heads(spoken, end, options.tasks),
        lines=_lines(end) + _JSON,
        asks_usage=spoken.asks_usage,
        watched=True,
    )


class _Endpoint(NamedTuple):
    target: Target
    path: str
    headers: dict[str, str]
    query: dict[str, str]


def _endpoint(options: SaasOptions, base_url: str) -> _Endpoint:
    """Address and key, as the table's ``auth`` says; the user's own headers go before all others."""
    target, path = parse_target(
        base_url,
        proxy=options.proxy,
        local_address=options.local_address,
        ca_file=options.ca_file,
    )
    headers, query = _key(options) if options.api_key else ({}, {})
    headers = merged(headers, options.headers)
    header_lines(headers)  # refuses at deploy what no header can carry
    return _Endpoint(target, path, headers, {**options.query, **query})


def _key(options: SaasOptions) -> tuple[dict[str, str], dict[str, str]]:
    """The key as header or as part of the query; neither where it only signs."""
    kind, _, name = options.provider.auth.partition(":")
    if kind == "bearer":
        return {"Authorization": f"Bearer {options.bearer}"}, {}
    if kind == "bearer;":
        return {"Authorization": f"Bearer;{options.api_key}"}, {}
    if kind == "header":
        return {name: options.api_key}, {}
    return {}, {name: options.api_key} if kind == "query" else {}


def _heads(spoken: Wire, end: _Endpoint, tasks: Collection[Task]) -> dict[Task, bytes]:
    lines = _lines(end)
    query = f"?{urlencode(end.query)}" if end.query else ""
    heads: dict[Task, bytes] = {}
    for task in Task:
        own = spoken.path(task)
        if own is not None and task in tasks:
            kind = b"" if task is Task.TRANSCRIPTION else _JSON  # a form says its kind itself
            heads[task] = (
                request_head("POST", end.target, f"{end.path}{own}{query}", lines + kind) + b"Content-Length: "
            )
    return heads


def _lines(end: _Endpoint) -> bytes:
    return header_lines(merged(standard_headers(end.target), end.headers))
