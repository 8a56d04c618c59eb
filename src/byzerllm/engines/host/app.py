"""The host's HTTP API: who may ask, which path is answered by which task, and errors in OpenAI's form."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from byzerllm.engines.host import chat, completion, media, tokens, vectors
from byzerllm.engines.host.protocol import (
    Answer,
    ClientGone,
    HttpRequest,
    Message,
    Receive,
    Send,
    Whole,
    error_answer,
    known,
    read,
    send_answer,
    until_gone,
)
from byzerllm.errors import (
    AuthenticationFailed,
    ByzerError,
    InvalidInput,
    NotFound,
    Overloaded,
)

Handler = Callable[[Any, HttpRequest, str], Awaitable[Answer]]

# Asks for nothing but a model that is there: of some kinds a request that does work would take long, and they have done
# some of it when they are loaded.
READY = "/ready"
TOKENS: Mapping[str, Handler] = {"/tokenize": tokens.tokenize, "/detokenize": tokens.detokenize}
# What each kind of model answers.
ROUTES: Mapping[str, Mapping[str, Handler]] = {
    "text": {
        "/v1/chat/completions": chat.answer,
        "/v1/completions": completion.answer,
        **TOKENS,
    },
    "embedding": {"/v1/embeddings": vectors.embeddings, **TOKENS},
    "reranker": {"/v1/rerank": vectors.rerank, "/v1/score": vectors.score, **TOKENS},
    "transcription": {"/v1/audio/transcriptions": media.transcriptions},
    "speech": {"/v1/audio/speech": media.speech},
    "image": {"/v1/images/generations": media.images},
}


@dataclass
class Application:
    """An ASGI application for one model, called ``name``, that does ``task``. ``model`` is None while it loads; only
    requests with ``token`` are answered."""

    name: str
    task: str
    token: str
    model: Any = None
    clock: Callable[[], float] = time.time

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"{scope['type']} is not served")
        if scope["path"] == "/health":
            await send_answer(self._health(), send)
            return
        try:
            self._check_token(dict(scope["headers"]))  # before the body, so that nobody else can fill the memory
            request = await read(scope, receive, self.clock())
        except ClientGone:
            return
        except ByzerError as error:
            await send_answer(error_answer(error), send)
            return
        await until_gone(self._serve(request, send), receive)

    async def _serve(self, request: HttpRequest, send: Send) -> None:
        try:
            await send_answer(await self._answer(request), send)
        except Exception as error:  # noqa: BLE001  # the last resort: the client is told, the log has the cause
            await send_answer(error_answer(known(error)), send)

    def _health(self) -> Answer:
        return Whole({"status": "ok"}) if self.model is not None else Whole({"status": "loading"}, 503)

    async def _answer(self, request: HttpRequest) -> Answer:
        if request.path == "/v1/models":
            return Whole({"object": "list", "data": [self._model_object(request.at)]})
        handler = self._handler(request)
        if self.model is None:
            raise Overloaded("The model is still being loaded.", retry_after=1)
        if handler is None:
            return Whole({"status": "ok"})
        return await handler(self.model, request, self.name)

    def _check_token(self, headers: Mapping[bytes, bytes]) -> None:
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ").strip()
        if not hmac.compare_digest(given, self.token.encode()):
            raise AuthenticationFailed("This engine is private.")

    def _handler(self, request: HttpRequest) -> Handler | None:
        if request.path == READY:
            return None
        own = ROUTES[self.task]
        handler = own.get(request.path)
        if handler is None:
            if any(request.path in paths for paths in ROUTES.values()):
                raise InvalidInput(f"{self.name} does not answer {request.path}.", hint=f"It has {', '.join(own)}.")
            raise NotFound(f"There is nothing at {request.path}.", hint=f"This engine has {', '.join(own)}.")
        if request.method != "POST":
            raise NotFound(f"{request.path} takes POST, not {request.method}.", status=405)
        return handler

    def _model_object(self, now: int) -> dict[str, Any]:
        card = {"id": self.name, "object": "model", "created": now, "owned_by": "byzerllm"}
        context = getattr(self.model, "context", None)
        return {**card, "max_model_len": context} if context else card
