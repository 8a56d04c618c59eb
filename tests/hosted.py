"""The engine host with a model that is none: its HTTP side without torch, sockets and threads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from byzerllm.engines.host.app import Application
from byzerllm.engines.host.backend import Job, Likely, Prompt, Sampling, Token
from byzerllm.errors import InvalidInput

TOKEN = "private"
NOW = 1_700_000_000
END = 0


@dataclass
class Speller:
    """A ``TextModel`` whose tokens are bytes: it says ``says`` and then ``END``, or for ever with ``endless``.

    ``jobs`` are those that it got; ``encoded`` counts the texts that it read, ``made`` its tokens, ``open`` the jobs
    that are neither whole nor closed.
    """

    says: str = "hello"
    endless: bool = False
    fails_after: int | None = None
    context: int = 100
    characters: int = 1000
    vocabulary: int = 256
    tool_format: str | None = None
    end_ids: frozenset[int] = frozenset((END,))
    defaults: Sampling = field(default_factory=Sampling)
    jobs: list[Job] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    encoded: int = 0
    made: int = 0
    open: int = 0

    async def encode(self, text: str, *, special: bool) -> list[int]:
        self.encoded += 1
        return [*text.encode()]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        if any(not 0 <= token < 256 for token in ids):
            raise InvalidInput("no token", param="prompt")
        return bytes(token for token in ids if token != END).decode("utf-8", "replace")

    async def chat_prompt(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> Prompt:
        self.prompts.append((messages, tools, dict(options)))
        return Prompt([*"".join(message["content"] or "" for message in messages).encode()])

    async def generate(self, job: Job) -> AsyncGenerator[Token, None]:
        self.jobs.append(job)
        self.open += 1
        try:
            for number, token in enumerate(self._tokens(job), 1):
                await asyncio.sleep(0)
                self.made += 1
                yield token
                if number == self.fails_after:
                    raise InvalidInput("it broke")
        finally:
            self.open -= 1

    def _tokens(self, job: Job) -> list[Token]:
        text = self.says.encode()
        ids = [*text * (job.max_tokens if self.endless else 1), *([] if self.endless else [END])]
        top = tuple(Likely(ord("x"), -2.0) for _ in range(job.sampling.alternatives or 0))
        return [Token(token, -0.5, top) for token in ids[: job.max_tokens]]


@dataclass
class Reply:
    """What was sent. ``events`` are the JSON objects of a stream; ``done`` says whether it came to its end, and
    ``starts`` how often an answer was begun."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    starts: int = 1

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json()["error"]
        return found

    @property
    def done(self) -> bool:
        return self.body.endswith(b"data: [DONE]\n\n")

    @property
    def events(self) -> list[Any]:
        lines = [line for line in self.body.decode().split("\n\n") if line and line != "data: [DONE]"]
        return [json.loads(line.removeprefix("data: ")) for line in lines]


class Host:
    """The application of a model, called without a server. ``leave_after``: the client goes after so many sends."""

    def __init__(self, model: Any, task: str = "text") -> None:
        self.application = Application("the-model", task, TOKEN, model=model, clock=lambda: NOW)

    def post(self, path: str, body: Any = None, *, leave_after: int | None = None, **more: Any) -> Reply:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        return asyncio.run(self.call("POST", path, data, leave_after=leave_after, **more))

    def get(self, path: str, **more: Any) -> Reply:
        return asyncio.run(self.call("GET", path, b"", **more))

    async def call(
        self,
        method: str,
        path: str,
        body: bytes,
        *,
        token: str = TOKEN,
        leave_after: int | None = None,
        content_type: str = "application/json",
    ) -> Reply:
        sent: list[dict[str, Any]] = []
        gone = asyncio.Event()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if leave_after is not None and len(sent) > leave_after:
                gone.set()
            await asyncio.sleep(0)

        if leave_after == 0:
            gone.set()
        headers = [(b"authorization", f"Bearer {token}".encode()), (b"content-type", content_type.encode())]
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        await self.application(scope, receive, send)
        start: dict[str, Any] = sent[0] if sent else {"status": 0, "headers": []}
        starts = sum(message["type"] == "http.response.start" for message in sent)
        return Reply(start["status"], dict(start["headers"]), b"".join(m.get("body", b"") for m in sent), starts)
