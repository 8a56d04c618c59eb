"""From a vendor's checked parameters, or a running engine, to the ``Upstream`` that the relay uses."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

import msgspec

from byzerllm import __version__
from byzerllm.providers.registry import SaasOptions
from byzerllm.relay.target import Target, header_lines, parse_target, request_head
from byzerllm.routing.worker import PassThrough, Translated, Upstream
from byzerllm.runtime.base import EngineProcess
from byzerllm.spec import Timeouts
from byzerllm.wire import WIRES, translator
from byzerllm.wire.base import Task, Wire

_JSON = b"Content-Type: application/json\r\n"
USER_AGENT = f"byzerllm/{__version__}"


def saas_upstream(options: SaasOptions, base_url: str) -> Upstream:
    """The vendor's endpoint with this instance's key.

    Raises:
        InvalidInput: an address that cannot be used, or a value that cannot stand in a header.
    """
    target, path, headers = _endpoint(options, base_url)
    spoken = WIRES.get(options.provider.wire)
    if spoken is None:
        return Translated(
            wire=translator(options.provider.wire),
            target=target,
            model=options.model,
            timeouts=options.timeouts,
            max_retries=options.max_retries,
            vendor=options.vendor(),
            prefix=path,
            lines=_lines(target, headers) + _JSON,
        )
    return PassThrough(
        wire=spoken,
        target=target,
        model=options.model,
        timeouts=options.timeouts,
        max_retries=options.max_retries,
        heads=_heads(spoken, target, path, headers, options.query),
        defaults={name: msgspec.Raw(text.encode()) for name, text in options.body.items()},
    )


def models_requests(options: SaasOptions, base_url: str) -> tuple[Target, list[tuple[str, bytes]]]:
    """The vendor's free call that lists its models, as path and whole request; then the same one below ``/v1``, for
    the case that the address lacks it."""
    target, prefix, headers = _endpoint(options, base_url)
    lines = _lines(target, headers)
    own = options.provider.models_path
    paths = [prefix + own] + ([] if prefix.endswith("/v1") else [f"{prefix}/v1{own}"])
    return target, [(p, request_head("GET", target, p + _query(options.query), lines) + b"\r\n") for p in paths]


def engine_upstream(process: EngineProcess, model: str, timeouts: Timeouts) -> PassThrough:
    """The private endpoint of an engine process. The retries bridge the moment until a dead process is noticed."""
    spoken = WIRES["openai"]
    target, path = parse_target(process.base_url + "/v1")
    headers = {"Authorization": f"Bearer {process.token}"}
    return PassThrough(
        wire=spoken,
        target=target,
        model=model,
        timeouts=timeouts,
        max_retries=3,
        heads=_heads(spoken, target, path, headers, {}),
    )


def _endpoint(options: SaasOptions, base_url: str) -> tuple[Target, str, dict[str, str]]:
    target, path = parse_target(
        base_url,
        proxy=options.proxy,
        local_address=options.local_address,
        ca_file=options.ca_file,
    )
    headers = dict(options.headers)
    if options.provider.auth == "bearer" and options.api_key:
        headers["Authorization"] = f"Bearer {options.api_key}"
    return target, path, headers


def _heads(
    spoken: Wire, target: Target, path: str, headers: Mapping[str, str], query: Mapping[str, str]
) -> dict[Task, bytes]:
    lines = _lines(target, headers) + _JSON
    heads: dict[Task, bytes] = {}
    for task in Task:
        own = spoken.path(task)
        if own is not None:
            heads[task] = request_head("POST", target, f"{path}{own}{_query(query)}", lines) + b"Content-Length: "
    return heads


def _query(query: Mapping[str, str]) -> str:
    return f"?{urlencode(query)}" if query else ""


def _lines(target: Target, headers: Mapping[str, str]) -> bytes:
    return header_lines({"Host": target.authority, "User-Agent": USER_AGENT, "Accept": "*/*", **headers})
