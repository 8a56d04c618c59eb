"""From a checked spec, or a running engine, to the ``Upstream`` that the relay uses. Secrets are resolved here."""

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
from byzerllm.spec import Timeouts, resolve
from byzerllm.wire import wire
from byzerllm.wire.base import Task, Wire

USER_AGENT = f"byzerllm/{__version__}"


def saas_upstream(options: SaasOptions, base_url: str, environ: Mapping[str, str]) -> Upstream:
    """The vendor's endpoint with this instance's key.

    Raises:
        InvalidInput: a reference cannot be resolved, or a value cannot stand in a header.
    """
    target, path, headers = _endpoint(options, base_url, environ)
    spoken = wire(options.provider.wire)
    query = {k: resolve(k, v, environ) for k, v in options.query.items()}
    return Upstream(
        wire=spoken,
        target=target,
        model=options.model,
        timeouts=options.timeouts,
        max_retries=options.max_retries,
        heads=_heads(spoken, target, path, headers, query),
        defaults={name: msgspec.Raw(text.encode()) for name, text in options.body.items()},
    )


def models_request(options: SaasOptions, base_url: str, environ: Mapping[str, str]) -> tuple[Target, str, bytes]:
    """Target, path prefix and headers (each line ended) of the vendor's free call that lists its models."""
    target, path, headers = _endpoint(options, base_url, environ)
    return target, path, _header_lines(target, headers)


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


def _endpoint(options: SaasOptions, base_url: str, environ: Mapping[str, str]) -> tuple[Target, str, dict[str, str]]:
    target, path = parse_target(
        base_url,
        proxy=resolve("saas.proxies", options.proxy, environ),
        local_address=options.local_address,
        ca_file=options.ca_file,
    )
    headers = {name: resolve(name, value, environ) for name, value in options.headers.items()}
    if options.provider.auth == "bearer" and options.api_key:
        headers["Authorization"] = f"Bearer {resolve('saas.api_key', options.api_key, environ)}"
    return target, path, headers


def _heads(
    spoken: Wire, target: Target, path: str, headers: Mapping[str, str], query: Mapping[str, str]
) -> dict[Task, bytes]:
    lines = _header_lines(target, headers) + b"Content-Type: application/json\r\n"
    suffix = f"?{urlencode(query)}" if query else ""
    heads: dict[Task, bytes] = {}
    for task in Task:
        own = spoken.path(task)
        if own is not None:
            heads[task] = request_head("POST", target, f"{path}{own}{suffix}", lines) + b"Content-Length: "
    return heads


def _header_lines(target: Target, headers: Mapping[str, str]) -> bytes:
    lines = {"Host": target.authority, "User-Agent": USER_AGENT, "Accept": "*/*", **headers}
    for name, value in lines.items():
        if not value.isascii() or not value.isprintable():
            raise InvalidInput(f"The value for the header {name} has characters that no header can carry.", param=name)
    return "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode("ascii")
