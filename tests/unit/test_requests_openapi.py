"""The bodies of the admin API, and the document that describes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from byzerllm import __version__
from byzerllm.gateway.openapi import document
from byzerllm.gateway.requests import DeployRequest, ListenerRequest, ScaleRequest
from byzerllm.spec import DeploymentSpec


def test_a_deploy_request_needs_only_the_spec() -> None:
    found = msgspec.json.decode(b'{"spec":{"name":"m"}}', type=DeployRequest)
    assert found == DeployRequest(spec=DeploymentSpec(name="m"), replace=False, verify=True, wait=True, environment={})
    other = msgspec.json.decode(b'{"spec":{"name":"m"}}', type=DeployRequest)
    assert found.environment is not other.environment


def test_a_listener_is_on_loopback_unless_it_is_told_otherwise() -> None:
    found = msgspec.json.decode(b"{}", type=ListenerRequest)
    assert (found.host, found.port, found.api_key, found.served_model_name) == ("127.0.0.1", 8000, "", "")
    assert (found.allow_credentials, found.allowed_origins) == (False, ("*",))


@pytest.mark.parametrize(
    ("cls", "body"),
    [
        (DeployRequest, b"{}"),
        (DeployRequest, b'{"spec":{"name":"m"},"relpace":true}'),
        (DeployRequest, b'{"spec":{"name":"m","num_worker":1}}'),
        (DeployRequest, b'{"spec":{"name":"m","load_balance":"random"}}'),
        (DeployRequest, b'{"spec":{"name":"m"},"environment":{"A":1}}'),
        (ScaleRequest, b'{"num_workers":"2"}'),
        (ScaleRequest, b'{"num_workers":2,"x":1}'),
        (ListenerRequest, b'{"prt":1}'),
    ],
)
def test_what_is_misspelt_or_of_the_wrong_kind_is_refused(cls: type[Any], body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body, type=cls)


def walk(node: Any) -> Iterator[tuple[str, Any]]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield str(key), value
        yield from walk(value)


def test_every_reference_of_the_document_leads_somewhere() -> None:
    shown = json.loads(json.dumps(document()))
    references = {value for key, value in walk(shown) if key == "$ref"}
    assert len(references) >= 5
    for reference in references:
        at = shown
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]


def test_every_name_in_a_path_is_a_parameter_and_every_operation_has_answers() -> None:
    shown = document()
    assert (shown["openapi"], shown["info"]["version"]) == ("3.1.0", __version__)
    for path, item in shown["paths"].items():
        named = {p["name"] for p in item.get("parameters", ()) if p["in"] == "path"}
        assert named == ({"name"} if "{name}" in path else set()), path
        operations = [v for k, v in item.items() if k in ("get", "post", "delete")]
        assert operations
        for operation in operations:
            assert operation["summary"]
            assert {"default"} < set(operation["responses"])


def test_schemas_are_those_of_the_types() -> None:
    schemas = document()["components"]["schemas"]
    assert set(schemas["DeploymentSpec"]["properties"]) == set(DeploymentSpec.__struct_fields__)
    assert schemas["DeploymentSpec"]["required"] == ["name"]
    assert schemas["DeploymentSpec"]["additionalProperties"] is False
    assert schemas["ScaleRequest"]["required"] == ["num_workers"]
