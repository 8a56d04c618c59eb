"""The admin API as an OpenAPI 3.1 document, with the schemas taken from the types that decode the requests."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from byzerllm import __version__
from byzerllm.gateway.requests import DeployRequest, ListenerRequest, ScaleRequest

_NDJSON = "application/x-ndjson"


def _operation(summary: str, *, body: str | None = None, events: bool = False, status: str = "200") -> dict[str, Any]:
    kind = _NDJSON if events else "application/json"
    schema: dict[str, Any] = {"$ref": "#/components/schemas/Event"} if events else {"type": "object"}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            status: {"description": "events, one a line" if events else "done", "content": {kind: {"schema": schema}}},
            "default": {
                "description": "an error",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if body is not None:
        reference = {"schema": {"$ref": f"#/components/schemas/{body}"}}
        operation["requestBody"] = {"required": True, "content": {"application/json": reference}}
    return operation


def _parameter(name: str, place: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": {"type": kind}}


def _paths() -> dict[str, Any]:
    name = [_parameter("name", "path")]
    one = "/admin/deployments/{name}"
    return {
        "/admin/server": {"get": _operation("Address, process and version of the server")},
        "/admin/server/stop": {"post": _operation("Drain, stop the engines and exit", status="202")},
        "/admin/restore": {"post": _operation("Wait until every instance is ready or has failed", events=True)},
        "/admin/deployments": {
            "get": _operation("All instances, secrets masked"),
            "post": _operation(
                "Deploy or change an instance; closing the connection before the final event undoes it",
                body="DeployRequest",
                events=True,
            ),
        },
        one: {
            "parameters": name,
            "get": _operation("One instance, secrets masked"),
            "delete": _operation("Drain and remove; with force=1 without draining", events=True)
            | {"parameters": [_parameter("force", "query", "integer")]},
        },
        f"{one}/stat": {
            "parameters": name,
            "get": _operation("Workers and slots, in the order that `byzerllm stat` prints")
            | {"parameters": [_parameter("detail", "query", "integer")]},
        },
        f"{one}/scale": {
            "parameters": name,
            "post": _operation("Another number of workers", body="ScaleRequest", events=True),
        },
        f"{one}/logs": {"parameters": name, "get": _logs()},
        "/admin/listeners": {
            "post": _operation(
                "Open the OpenAI API on an address while this request lasts", body="ListenerRequest", events=True
            )
        },
    }


def _logs() -> dict[str, Any]:
    operation = _operation("An engine worker's log")
    operation["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    operation["parameters"] = [_parameter(n, "query", "integer") for n in ("worker", "tail", "follow")]
    return operation


@functools.cache
def document() -> dict[str, Any]:
    """The whole document."""
    _, schemas = msgspec.json.schema_components(
        (DeployRequest, ScaleRequest, ListenerRequest), ref_template="#/components/schemas/{name}"
    )
    schemas["Error"] = {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {k: {} for k in ("message", "type", "code", "param", "hint", "details")},
            }
        },
    }
    schemas["Event"] = {
        "type": "object",
        "required": ["event"],
        "properties": {
            "event": {
                "enum": [
                    "accepted", "progress", "note", "warning", "ready", "unchanged", "gone", "listening", "done",
                    "failed",
                ]
            },
            "message": {"type": "string"},
        },
    }  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "byzerllm admin API", "version": __version__},
        "security": [{"token": []}],
        "paths": _paths(),
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }
