"""The admin API: what the command line talks to. ``openapi.py`` describes it; the server's own listeners have it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec

from byzerllm.control.controller import Controller
from byzerllm.control.deployment import Notify
from byzerllm.errors import InvalidInput, NotFound
from byzerllm.gateway.events import Emit, Operations
from byzerllm.gateway.http import Receive, Scope, Send, read_body, send_json
from byzerllm.gateway.listeners import Listeners
from byzerllm.gateway.openapi import document
from byzerllm.gateway.requests import DeployRequest, ListenerRequest, ScaleRequest
from byzerllm.routing.report import detail, stat
from byzerllm.runtime.base import Runtime

log = logging.getLogger(__name__)

_BODY_LIMIT = 1024 * 1024
_LOG_TAIL = 200


class Admin:
    """Handlers of ``/admin``. ``info`` gives the server's own facts, ``stop`` begins its orderly end."""

    def __init__(
        self,
        controller: Controller,
        runtime: Runtime,
        listeners: Listeners,
        *,
        info: Callable[[], dict[str, Any]],
        stop: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        self._controller = controller
        self._runtime = runtime
        self._listeners = listeners
        self._info = info
        self._stop = stop
        self._now = now
        self._operations = Operations()

    def end_operations(self) -> None:
        """Cancel what runs for a long time: deploys, followed logs, listeners. Their clients are told."""
        self._operations.end()

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request whose token is checked.

        Raises:
            ByzerError: what the answer says, while nothing was sent.
        """
        parts = tuple(unquote(p) for p in scope["path"].split("/")[2:])
        method = scope["method"]
        query = {k: v[-1] for k, v in parse_qs(scope["query_string"].decode("latin-1")).items()}
        match (method, *parts):
            case ("GET", "server"):
                await send_json(send, 200, {**self._info(), "deployments": len(self._controller.names())})
            case ("POST", "server", "stop"):
                await send_json(send, 202, {"status": "stopping"})
                self._stop()
            case ("POST", "restore"):
                await self._operations.run(receive, send, self._restore)
            case ("GET", "openapi.json"):
                await send_json(send, 200, document())
            case ("POST", "listeners"):
                request = await _decode(scope, receive, ListenerRequest)
                await self._operations.run(receive, send, lambda emit: self._listeners.serve(request, emit))
            case (_, "deployments", *rest):
                await self._deployments(method, tuple(rest), query, scope, receive, send)
            case _:
                raise _no_such_path(scope)

    async def _deployments(
        self, method: str, rest: tuple[str, ...], query: dict[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        controller = self._controller
        match (method, *rest):
            case ("GET",):
                await send_json(send, 200, {"deployments": [controller.status(n) for n in controller.names()]})
            case ("POST",):
                request = await _decode(scope, receive, DeployRequest)
                await self._operations.run(receive, send, lambda emit: self._deploy(request, emit))
            case ("GET", name):
                await send_json(send, 200, controller.status(name))
            case ("DELETE", name):
                controller.get(name)
                force = _flag(query, "force")
                await self._operations.run(receive, send, lambda emit: self._undeploy(name, force, emit))
            case ("GET", name, "stat"):
                await send_json(send, 200, self._stat(name, _flag(query, "detail")))
            case ("POST", name, "scale"):
                controller.get(name)
                wanted = await _decode(scope, receive, ScaleRequest)
                await self._operations.run(receive, send, lambda emit: self._scale(name, wanted.num_workers, emit))
            case ("GET", name, "logs"):
                await self._logs(name, query, receive, send)
            case _:
                raise _no_such_path(scope)

    def _stat(self, name: str, with_detail: bool) -> dict[str, Any]:
        deployment = self._controller.get(name)
        report = stat(deployment.instance, self._now())
        if with_detail:
            report |= detail(deployment.instance)
            state, reason = deployment.state()
            report |= {"deployment_state": state.value, "reason": reason, "processes": deployment.worker_details()}
        return report

    async def _deploy(self, request: DeployRequest, emit: Emit) -> None:
        outcome = await self._controller.deploy(
            request.spec,
            replace=request.replace,
            verify=request.verify,
            wait=request.wait,
            environment=request.environment,
            # without a wait it is the outcome: the client leaves on it, which would undo what is not done yet
            accepted=(lambda: emit({"event": "accepted"})) if request.wait else (lambda: None),
            notify=_progress(emit),
            note=lambda message: emit({"event": "note", "message": message}),
            warn=lambda message: emit({"event": "warning", "message": message}),
        )
        log.info("%s is %s", request.spec.name, _WORDS[outcome])
        emit({"event": outcome, "message": f"{request.spec.name} is {_WORDS[outcome]}"})

    async def _scale(self, name: str, num_workers: int, emit: Emit) -> None:
        outcome = await self._controller.scale(name, num_workers, lambda: emit({"event": "accepted"}), _progress(emit))
        log.info("%s has %d workers", name, num_workers)
        emit({"event": outcome, "message": f"{name} has {num_workers} workers"})

    async def _undeploy(self, name: str, force: bool, emit: Emit) -> None:
        await self._controller.undeploy(name, force=force, notify=_progress(emit))
        log.info("%s is gone", name)
        emit({"event": "gone", "message": f"{name} is gone"})

    async def _restore(self, emit: Emit) -> None:
        ready: list[str] = []
        failed: dict[str, Any] = {}
        said: set[str] = set()

        def notify(name: str, message: str) -> None:
            if name not in said:
                said.add(name)
                emit({"event": "progress", "model": name, "message": message})

        async for name, reason in self._controller.settled(notify):
            if reason is None:
                ready.append(name)
            else:
                failed[name] = {"message": reason, "code": "deployment_failed"}
            emit({"event": "progress", "model": name, "message": reason or "ready"})
        emit({"event": "done", "ready": ready, "failed": failed})

    async def _logs(self, name: str, query: dict[str, str], receive: Receive, send: Send) -> None:
        deployment = self._controller.get(name)
        processes = deployment.worker_details()
        if deployment.spec.is_saas or not processes:
            kind = deployment.spec.pretrained_model_type
            raise NotFound(f"{name} has no engine log: its workers are calls to {kind}.")
        index = _number(query, "worker", processes[0]["index"])
        ids = [p["id"] for p in processes if p["index"] == index]
        if not ids:
            numbers = ", ".join(str(p["index"]) for p in processes)
            raise NotFound(f"{name} has no worker {index}.", hint=f"They are counted from 0; there is: {numbers}.")
        tail = _number(query, "tail", _LOG_TAIL)
        await self._operations.text(
            receive, send, self._runtime.logs(ids[-1], tail=tail, follow=_flag(query, "follow"))
        )


_WORDS = {"ready": "ready", "accepted": "being deployed", "unchanged": "already deployed with these parameters"}


def _progress(emit: Emit) -> Notify:
    def notify(message: str, *, lasting: bool = False) -> None:
        emit({"event": "note" if lasting else "progress", "message": message})

    return notify


def _flag(query: dict[str, str], name: str) -> bool:
    return query.get(name, "0") not in ("0", "false", "")


def _number(query: dict[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not text.isdigit():
        raise InvalidInput(f"{name}={text!r} must be a whole number.", param=name)
    return int(text)


def _no_such_path(scope: Scope) -> NotFound:
    return NotFound(f"The admin API has no {scope['method']} {scope['path']}.", hint="See /admin/openapi.json.")


async def _decode(scope: Scope, receive: Receive, kind: type[Any]) -> Any:
    body = await read_body(scope, receive, _BODY_LIMIT)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"The request body is not what {scope['path']} takes: {error}.") from None
