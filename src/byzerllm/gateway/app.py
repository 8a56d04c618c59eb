"""The ASGI application of one listener: from a path to its handler, and from an error to its answer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from byzerllm import __version__
from byzerllm.errors import ByzerError, InternalError, InvalidInput, NotFound
from byzerllm.gateway.admin import Admin
from byzerllm.gateway.events import send_error
from byzerllm.gateway.http import JSON, ClientGone, Header, Receive, Scope, Send, header, send_bytes, send_json
from byzerllm.gateway.inference import Inference
from byzerllm.gateway.listeners import Listener
from byzerllm.gateway.metrics import CONTENT_TYPE, Metrics
from byzerllm.gateway.requests import Cors
from byzerllm.routing.instance import Instance
from byzerllm.routing.table import Table
from byzerllm.wire.openai import SURFACES, error_body

log = logging.getLogger(__name__)

_MODEL_PATHS = {path: task for task, path in SURFACES.items()}


@dataclass(frozen=True)
class Services:
    """What all listeners share."""

    table: Table
    inference: Inference
    admin: Admin
    metrics: Metrics


class Gateway:
    """An ASGI callable."""

    def __init__(self, services: Services, listener: Listener) -> None:
        self._services = services
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        task = _MODEL_PATHS.get(path)
        extra = self._cors_headers(scope) if self._listener.cors else []
        try:
            if task is not None and scope["method"] == "POST":
                self._listener.access.check_api(scope["headers"])
                await self._services.inference.handle(
                    task, scope, receive, send, served_model=self._listener.served_model, extra=extra
                )
            elif scope["method"] == "OPTIONS" and self._listener.cors:
                await send_bytes(send, 204, b"", extra)
            elif path.startswith("/admin/") and self._listener.admin:
                await self._admin(scope, receive, send)
            else:
                await self._small(path, scope, send, extra)
        except ClientGone:
            return
        except ByzerError as error:
            headers = [JSON, (b"x-request-id", self._services.inference.request_id(scope)), *extra]
            if error.status == 401:
                headers.append((b"www-authenticate", b"Bearer"))
            elif error.status == 405:
                headers.append((b"allow", b"POST" if task is not None else b"GET, HEAD"))
            await send_bytes(send, error.status, error_body(error), headers)

    async def _admin(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._listener.access.check_admin(scope["headers"])
            await self._services.admin.handle(scope, receive, send)
        except ByzerError as error:
            await send_error(send, error)
        except ClientGone:
            return
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            await send_error(send, InternalError("Internal error; the server's log has the details."))

    async def _small(self, path: str, scope: Scope, send: Send, extra: list[Header]) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise _no_such_path(scope)
        if path == "/health":
            await send_json(send, 200, {"status": "ok"}, extra)
            return
        if path == "/version":
            await send_json(send, 200, {"version": __version__}, extra)
            return
        self._listener.access.check_api(scope["headers"])
        table = self._services.table
        if path == "/metrics":
            await send_bytes(send, 200, self._services.metrics.render(), [(b"content-type", CONTENT_TYPE)])
        elif path == "/v1/models":
            cards = [self._card(i) for i in table.all()]
            await send_json(send, 200, {"object": "list", "data": cards}, extra)
        elif path.startswith("/v1/models/"):
            instance = table.get(unquote(path.removeprefix("/v1/models/")))
            await send_json(send, 200, self._card(instance), extra)
        else:
            raise _no_such_path(scope)

    def _card(self, instance: Instance) -> dict[str, Any]:
        return {
            "id": instance.name,
            "object": "model",
            "created": int(instance.created_at),
            "owned_by": "byzerllm",
            "task": instance.task.value,
        }

    def _cors_headers(self, scope: Scope) -> list[Header]:
        cors = self._listener.cors
        origin = header(scope, b"origin")
        if cors is None or origin is None:
            return []
        if "*" not in cors.allowed_origins and origin.decode("latin-1") not in cors.allowed_origins:
            return []
        headers = [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
        if cors.allow_credentials:
            headers.append((b"access-control-allow-credentials", b"true"))
        if scope["method"] == "OPTIONS":
            headers += _preflight(cors, scope)
        return headers


def _preflight(cors: Cors, scope: Scope) -> list[Header]:
    any_method = "*" in cors.allowed_methods
    methods = b"GET, POST, OPTIONS" if any_method else ", ".join(cors.allowed_methods).encode("latin-1")
    asked = header(scope, b"access-control-request-headers") or b""
    allowed = asked if "*" in cors.allowed_headers else ", ".join(cors.allowed_headers).encode("latin-1")
    return [
        (b"access-control-allow-methods", methods),
        (b"access-control-allow-headers", allowed),
        (b"access-control-max-age", b"600"),
    ]


def _no_such_path(scope: Scope) -> ByzerError:
    known = [*_MODEL_PATHS, "/v1/models", "/health", "/version", "/metrics"]
    if scope["path"] in known:
        return InvalidInput(f"{scope['path']} does not take {scope['method']}.", status=405)
    return NotFound(f"There is no {scope['path']} here. Known: {', '.join(known)}.")


def services(table: Table, inference: Inference, admin: Admin) -> Services:
    """The shared part, with the metrics over the same table."""
    return Services(table, inference, admin, Metrics(table))
