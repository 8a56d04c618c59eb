"""What stands between vLLM's server and the network: the private token on every path, not only on vLLM's own choice."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from byzerllm.engines.host.turn import Turn

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

TOKEN = "VLLM_API_KEY"
_MAX_ERROR = 64 * 1024


class Guard:
    """ASGI middleware. ``/health`` is open, anything else wants the token.

    ``advice`` is added to vLLM's refusal of a chat without a template, which does not say where one is missing.
    ``turn`` ends when the guard is made, which is when vLLM has taken its memory.
    """

    advice: ClassVar[str] = ""
    turn: ClassVar[Turn | None] = None

    def __init__(self, app: App) -> None:
        self._app = app
        self._expected = b"Bearer " + os.environ[TOKEN].encode()
        if self.turn is not None:
            self.turn.end()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] == "/health" or self._knows_token(scope):
            await self._app(scope, receive, _Advising(send, self.advice) if self.advice else send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _refuse(send)

    def _knows_token(self, scope: Message) -> bool:
        said = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(said, self._expected)


async def _refuse(send: Send) -> None:
    error = {"message": "Unauthorized", "type": "authentication_error", "param": None, "code": "invalid_api_key"}
    await _answer(send, 401, {"error": error})


async def _answer(send: Send, status: int, body: Any) -> None:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


class _Advising:
    """``send`` of one request. It holds back the start of a refusal until its text is known."""

    def __init__(self, send: Send, advice: str) -> None:
        self._send = send
        self._advice = advice
        self._held: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._held = message
        elif self._held is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body") or len(self._body) > _MAX_ERROR:
                await self._finish(message)

    async def _finish(self, last: Message) -> None:
        assert self._held is not None
        held, self._held = self._held, None
        body = self._advised()
        if body is not None:
            await _answer(self._send, 400, body)
        else:
            await self._send(held)
            await self._send({**last, "body": self._body})

    def _advised(self) -> Any | None:
        """The refusal with the advice; None where it is about something else."""
        if b"chat template" not in self._body:
            return None
        try:
            body = json.loads(self._body)
            body["error"]["message"] = self._advice
        except (ValueError, KeyError, TypeError):
            return None
        return body
