"""From a vendor's checked parameters, or a running engine, to the ``Upstream`` that the relay uses."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

import msgspec

from byzerllm import __version__
from byzerllm.errors import InvalidInput
from byzerllm.providers.registry import SaasOptions
from byzerllm.relay.target import Target, parse_target, proxy_authorization
from byzerllm.routing.worker import Upstream
from byzerllm.runtime.base import EngineProcess
from byzerllm.spec import Timeouts
from byzerllm.wire import wire
from byzerllm.wire.base import Task, Wire

USER_AGENT = f"byzerllm/{__version__}"


def saas_upstream(options: SaasOptions, base_url: str) -> Upstream:
    """The vendor's endpoint with this instance's key.

    Raises:
        InvalidInput: an address that cannot be used, or a value that cannot stand in a header.
    """
    target, path, headers = _endpoint(options, base_url)
    spoken = wire(options.provider.wire)
    return Upstream(
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
    lines = _header_lines(target, headers)
    own = options.provider.models_path
    paths = [prefix + own] + ([] if prefix.endswith("/v1") else [f"{prefix}/v1{own}"])
    return target, [(p, request_head("GET", target, p + _query(options.query), lines) + b"\r\n") for p in paths]


def engine_upstream(process: EngineProcess, model: str, timeouts: Timeouts) -> Upstream:
    """The private endpoint of an engine process. The retries bridge the moment until a dead process is noticed."""
    spoken = wire("openai")
    target, path = parse_target(process.base_url + "/v1")
    headers = {"Authorization": f"Bearer {process.token}"}
    return Upstream(
        wire=spoken,
        target=target,
        model=model,
        timeouts=timeouts,
        max_retries=3,
        heads=_heads(spoken, target, path, headers, {}),
    )


def request_head(method: str, target: Target, path: str, header_lines: bytes) -> bytes:
    """A request's first line and headers, without the empty line. Through a plain proxy the line has the address."""
    line = f"{method} {path} HTTP/1.1\r\n"
    if target.proxy and not target.tls:
        line = f"{method} http://{target.authority}{path} HTTP/1.1\r\n"
        header_lines += proxy_authorization(target.proxy)
    return line.encode("ascii") + header_lines


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
    lines = _header_lines(target, headers) + b"Content-Type: application/json\r\n"
    heads: dict[Task, bytes] = {}
    for task in Task:
        own = spoken.path(task)
        if own is not None:
            heads[task] = request_head("POST", target, f"{path}{own}{_query(query)}", lines) + b"Content-Length: "
    return heads


def _query(query: Mapping[str, str]) -> str:
    return f"?{urlencode(query)}" if query else ""


def _header_lines(target: Target, headers: Mapping[str, str]) -> bytes:
    lines = {"Host": target.authority, "User-Agent": USER_AGENT, "Accept": "*/*", **headers}
    for name, value in lines.items():
        if not value.isascii() or not value.isprintable():
            raise InvalidInput(f"The value for the header {name} has characters that no header can carry.", param=name)
    return "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode("ascii")
