"""What an instance does for the older clients: it is their worker and their stream server.

It keeps no slots: every call becomes a request to the server, whose limits hold. All that it says to a client is JSON
text, plain objects and built-in exceptions, since the client has none of our classes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from byzerllm.errors import ByzerError, InternalError, InvalidInput
from byzerllm.gateway.legacy import answers, content, items
from byzerllm.gateway.legacy.answers import Reply, Result
from byzerllm.gateway.legacy.items import Item, Kind
from byzerllm.gateway.legacy.link import Link
from byzerllm.gateway.legacy.streams import UNREAD_LIMIT, Streams, Take
from byzerllm.wire.base import Outgoing, Task
from byzerllm.wire.openai_lenient import OpenAILenient

log = logging.getLogger(__name__)

_MEDIA = (Task.SPEECH, Task.IMAGE, Task.TRANSCRIPTION)
_MISSING = {Kind.TOKENIZER: "tokenizer", Kind.TEMPLATE: "chat template"}


class LegacyService:
    """The instance ``name`` of the server whose ``server.json`` is in the folder ``home``.

    Every public method raises RuntimeError ("status code: message") and nothing else.
    """

    def __init__(self, name: str, home: str, unread_limit: float = UNREAD_LIMIT) -> None:
        self._name = name
        self._home = Path(home)
        self._wire = OpenAILenient()
        self._streams = Streams(unread_limit)
        self._made: Link | None = None

    async def stat(self) -> dict[str, Any]:
        """What ``byzerllm stat`` shows."""
        with _plain_errors():
            return await self._json(f"{self._deployment}/stat")

    def close(self) -> None:
        """End all streams and connections."""
        self._streams.close()
        if self._made is not None:
            self._made.close()

    # The worker

    async def async_apply(self, texts: list[str]) -> dict[str, list[str]]:
        """Answer request items, each a JSON text; the value is one JSON list with a result for each."""
        with _plain_errors():
            asked = [items.decode(text) for text in texts]
            results: list[Result] = []
            for group in items.groups(asked):
                results += await self._answer(group)
        answered = [
            {"predict": predict, "metadata": metadata, "input": item}
            for item, (predict, metadata) in zip(asked, results, strict=True)
        ]
        return {"value": [json.dumps(answered, ensure_ascii=False)]}

    # The stream server

    async def get_item(self, request_id: str) -> SimpleNamespace | None:
        """The stream's text so far, once there is more of it than last time; None at its end."""
        with _plain_errors():
            reply = await self._streams.next(request_id)
        return reply.item() if reply is not None else None

    # Item kinds

    async def _answer(self, group: list[Item]) -> list[Result]:
        item = group[0]
        match items.kind(item):
            case Kind.META:
                return [([await self._meta()], {})]
            case Kind.EMBEDDING:
                body = await self._link.body("POST", items.embedding(group, self._name))
                return answers.embeddings(body, len(group))
            case Kind.RERANK:
                return [(await self._rerank(item), {})]
            case Kind.ABORT:
                self._streams.abort(items.stream_id(item))
                return [("", {})]
            case Kind.CHAT:
                return [await self._chat(item)]
            case kind:
                raise InvalidInput(
                    f"{self._name} has no {_MISSING[kind]} service.", hint="Send messages: the model's own is used."
                )

    async def _chat(self, item: Item) -> Result:
        form = content.form(item["instruction"])
        if form is not None and (task := Task((await self._card())["task"])) in _MEDIA:
            started = time.monotonic()
            body = await self._link.body("POST", items.media(form, task, self._name))
            return answers.media(task, body, time.monotonic() - started)
        request = items.chat(item, self._name)
        if items.wants_stream(item):
            id = items.stream_id(item)
            self._streams.start(id, lambda take: self._stream(request, take))
            return "", {"request_id": id, "stream_server": self._name}
        started = time.monotonic()
        body = await self._link.body("POST", request)
        reply = Reply()
        reply.add(self._wire.events(body))
        return reply.result(time.monotonic() - started)

    async def _stream(self, request: Outgoing, take: Take) -> None:
        decoder = self._wire.stream()
        async with self._link.answer("POST", request) as answer:
            while data := await answer.read():
                take(decoder.feed(data))
        take(decoder.close())

    async def _rerank(self, item: Item) -> Any:
        """Pairs with their scores, the best first; of a single pair just that one."""
        scored: list[list[Any]] = []
        for query, documents, request in items.reranks(item, self._name):
            scored += answers.ranked(query, documents, await self._link.body("POST", request))
        scored.sort(key=lambda pair: pair[1], reverse=True)
        return scored[0] if items.is_single_pair(item) else scored

    async def _meta(self) -> dict[str, Any]:
        return answers.meta(await self._card(), await self._json(self._deployment))

    async def until_killed(self) -> None:
        """Never answers: whoever waits for it learns of the actor's end."""
        await asyncio.Event().wait()

    # The server

    async def _card(self) -> dict[str, Any]:
        return await self._json(f"/v1/models/{quote(self._name, safe='')}")

    async def _json(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self._link.body("GET", Outgoing(path, b"")))
        return found

    @property
    def _deployment(self) -> str:
        return f"/admin/deployments/{quote(self._name, safe='')}"

    @property
    def _link(self) -> Link:
        """Made at the first use, which is inside the loop."""
        if self._made is None:
            self._made = Link(self._home)
        return self._made


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors as the older client can unpickle them: what it cannot hides what went wrong."""
    try:
        yield
    except ByzerError as error:
        raise answers.plain(error) from None
    except Exception:
        log.exception("a request failed")
        raise answers.plain(InternalError("Internal error; the log of the instance's actor has the details.")) from None
