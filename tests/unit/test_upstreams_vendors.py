"""How a key travels, for each kind of auth and format, and what one deploy asks a vendor for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from byzerllm.control.upstreams import models_requests, saas_upstreams
from byzerllm.control.verify import model_ids
from byzerllm.providers import registry
from byzerllm.providers.parse import SaasOptions, parse
from byzerllm.providers.registry import read_table
from byzerllm.routing.worker import PassThrough, Translated, Upstream
from byzerllm.spec import DeploymentSpec
from byzerllm.wire.base import Outgoing, Task, decode_request

TABLE = """
type = "acme"
title = "Acme"
wire = "{wire}"
base_url = "https://acme.example/v1"
auth = "{auth}"
verified = "2026-11-23"
default_model = "m"
models_path = "{models_path}"
[params.api_key]
help = "key"
[params.field]
body = "field"
help = "f"
[params.group]
query = "group"
help = "g"
"""


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(wire: str = "openai", auth: str = "bearer", models_path: str = "/models", **params: str) -> SaasOptions:
        text = TABLE.replace("{wire}", wire).replace("{auth}", auth).replace("{models_path}", models_path)
        table = read_table(text, "t")
        monkeypatch.setattr(registry, "providers", lambda: {"acme": table})
        named = {f"saas.{name}": value for name, value in {"api_key": "k", **params}.items()}
        return parse(DeploymentSpec(name="m", pretrained_model_type="saas/acme", infer_params=named), {})

    return make


def request(upstream: Upstream) -> tuple[str, dict[str, str], Any]:
    """Path, headers and body of a chat request."""
    if isinstance(upstream, PassThrough):
        data = upstream.request(Task.CHAT, b'{"own":1}')
    else:
        assert isinstance(upstream, Translated)
        data = asyncio.run(upstream.request(Outgoing("/messages?beta=1", b'{"own":1}', {"X-Format": "1"})))
    head, _, body = data.decode().partition("\r\n\r\n")
    line, *rows = head.split("\r\n")
    return line.split(" ")[1], dict(row.split(": ", 1) for row in rows), json.loads(body)


@pytest.mark.parametrize(
    ("auth", "header", "query"),
    [
        ("bearer", ("Authorization", "Bearer k"), ""),
        ("bearer;", ("Authorization", "Bearer;k"), ""),
        ("header:api-key", ("api-key", "k"), ""),
        ("query:key", None, "key=k"),
        ("none", None, ""),
    ],
)
@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_the_key_goes_where_the_table_says(
    acme: Any, wire: str, auth: str, header: tuple[str, str] | None, query: str
) -> None:
    options = acme(wire, auth)
    (upstream,) = saas_upstreams(options, options.base_url)
    path, headers, _ = request(upstream)
    found = {name: value for name, value in headers.items() if "k" in value and name not in ("Host", "User-Agent")}
    assert found == (dict([header]) if header else {})
    own = (
        f"/v1/chat/completions?{query}".rstrip("?") if wire == "openai" else f"/v1/messages?beta=1&{query}".rstrip("&")
    )
    assert path == own
    _, [(_, listing)] = models_requests(options, options.base_url)
    assert (f"{header[0]}: {header[1]}\r\n".encode() in listing) if header else (b"\r\nAuthorization" not in listing)
    assert listing.startswith(f"GET /v1/models?{query}".rstrip("?").encode() + b" ")


@pytest.mark.parametrize(("owner", "accepted"), [("{}", "text/event-stream"), ('{"accept":"a/b"}', "a/b")])
def test_no_header_is_sent_twice(acme: Any, owner: str, accepted: str) -> None:
    options = acme("dashscope", extra_headers=owner)
    (upstream,) = saas_upstreams(options, options.base_url)
    assert isinstance(upstream, Translated)
    wanted = upstream.wire.request(
        decode_request(Task.CHAT, b'{"model":"m","stream":true,"messages":[]}'), upstream.vendor
    )
    head = asyncio.run(upstream.request(wanted)).partition(b"\r\n\r\n")[0].decode()
    rows = [row.split(": ", 1) for row in head.split("\r\n")[1:]]
    assert [value for name, value in rows if name.lower() == "accept"] == [accepted]
    assert len({name.lower() for name, _ in rows}) == len(rows)


def test_a_representation_shows_no_key(acme: Any) -> None:
    for wire in ("openai", "dashscope"):
        options = acme(wire, "query:key", api_key="hush", extra_headers='{"X-A":"hush"}')
        assert "hush" not in repr(options) + repr(saas_upstreams(options, options.base_url))


def test_without_a_key_none_is_sent(acme: Any) -> None:
    for auth in ("bearer", "query:key", "header:api-key"):
        options = acme(auth=auth, api_key="")
        path, headers, _ = request(saas_upstreams(options, options.base_url)[0])
        assert "?" not in path
        assert not {"Authorization", "api-key"} & set(headers)


def test_each_key_has_an_endpoint_of_its_own_at_one_address(acme: Any) -> None:
    options = acme(api_key="k1,k2")
    first, second = saas_upstreams(options, options.base_url)
    assert first.target == second.target
    assert request(first)[1]["Authorization"] == "Bearer k1"
    assert request(second)[1]["Authorization"] == "Bearer k2"


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_query_headers_and_body_of_the_owner_reach_every_format(acme: Any, wire: str) -> None:
    options = acme(
        wire, group="g 1", field="f", extra_headers='{"X-A":"b","user-agent":"me"}', extra_body='{"own":2,"more":[3]}'
    )
    (upstream,) = saas_upstreams(options, options.base_url)
    path, headers, body = request(upstream)
    assert "group=g+1" in path
    assert headers["X-A"] == "b"
    assert [value for name, value in headers.items() if name.lower() == "user-agent"] == ["me"]
    if isinstance(upstream, PassThrough):
        assert {name: json.loads(bytes(raw)) for name, raw in upstream.defaults.items()} == {
            "field": "f",
            "own": 2,
            "more": [3],
        }
    else:
        assert body == {"own": 1, "field": "f", "more": [3]}, "what the client says goes before"


@pytest.mark.parametrize(
    ("models_path", "base_url", "paths"),
    [
        ("/models", "https://acme.example/v1", ["/v1/models"]),
        ("/models?limit=9", "https://acme.example/v1", ["/v1/models?limit=9"]),
        ("/../../models", "https://acme.example/openai/deployments/d/v1", ["/openai/deployments/models"]),
        ("/models", "https://other.example", ["/models", "/v1/models"]),
        ("/models", "https://other.example/api", ["/api/models", "/api/v1/models"]),
        ("/models", "https://other.example/api/v3", ["/api/v3/models"]),
        ("/models", "https://other.example/v1beta/openai", ["/v1beta/openai/models"]),
    ],
)
def test_the_list_of_models(acme: Any, models_path: str, base_url: str, paths: list[str]) -> None:
    _, requests = models_requests(acme(models_path=models_path, base_url=base_url, model="m"), base_url)
    assert [request.split(b" ")[1].decode() for _, request in requests] == paths


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b'{"data":[{"id":"a"},{"id":"b"}]}', ["a", "b"]),
        (b'{"models":[{"name":"models/a"}]}', ["models/a"]),
        (b'{"data":[]}', []),
        (b'{"data":{}}', None),
        (b"<html>", None),
    ],
)
def test_lists_of_models(body: bytes, ids: list[str] | None) -> None:
    assert model_ids(body) == ids
