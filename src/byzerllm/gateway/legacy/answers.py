"""What the server answers, as the older wire's results. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec

from byzerllm.errors import ByzerError, UpstreamBroken, UpstreamError
from byzerllm.wire.base import BAD_JSON, Task
from byzerllm.wire.events import Event, Failure, Finish, Reasoning, Started, Text, Tokens, ToolCall
from byzerllm.wire.openai_events import join_call

_NO_TOKENS = Tokens(0, 0)
_BACKENDS = {"vllm": "ray/vllm", "deepspeed": "ray/deepspeed"}

Result = tuple[Any, dict[str, Any]]
"""What is predicted, and the metadata about it."""


class Reply:
    """A chat answer as far as it has come."""

    def __init__(self) -> None:
        self.id = ""
        self.text = ""
        self.reasoning = ""
        self.finish = ""
        self._tokens = _NO_TOKENS
        self._calls: dict[int, dict[str, Any]] = {}

    @property
    def size(self) -> int:
        """Characters held."""
        return len(self.text) + len(self.reasoning)

    def add(self, events: Iterable[Event]) -> bool:
        """Take events; returns whether a reader would see a difference.

        Raises:
            UpstreamError: the upstream reported an error amid the answer; what came before it is taken.
        """
        seen = False
        for event in events:
            match event:
                case Failure(error):
                    raise error
                case Started(id, _):
                    self.id = id
                    continue
                case Text(text):
                    self.text += text
                case Reasoning(text):
                    self.reasoning += text
                case ToolCall():
                    join_call(self._calls, event)
                case Tokens():
                    self._tokens = event
                case Finish(reason):
                    self.finish = reason
            seen = True
        return seen

    def result(self, seconds: float) -> Result:
        """The whole answer, which took so long."""
        tokens = self._tokens
        metadata: dict[str, Any] = {
            "request_id": self.id,
            "input_tokens_count": tokens.prompt,
            "generated_tokens_count": tokens.completion,
            "time_cost": seconds,
            "first_token_time": 0,
            "speed": tokens.completion / seconds if seconds > 0 else 0.0,
            "finish_reason": self.finish,
            **self._extra_info(),
        }
        if self.reasoning:
            metadata["reasoning_content"] = self.reasoning
        if self._calls:
            metadata["tool_calls"] = self._tool_calls()
        return self.text, metadata

    def item(self) -> SimpleNamespace:
        """What a reader of the stream gets: all text so far, as plain objects, since the older classes are not ours."""
        metadata = SimpleNamespace(
            input_tokens_count=self._tokens.prompt,
            generated_tokens_count=self._tokens.completion,
            reasoning_content=self.reasoning,
            finish_reason=self.finish,
            first_token_time=0.0,
            extra_info=self._extra_info(),
            tool_calls=self._tool_calls() if self._calls else None,
        )
        return SimpleNamespace(outputs=[SimpleNamespace(text=self.text, metadata=metadata)])

    def _extra_info(self) -> dict[str, Any]:
        return {"cache_read_input_tokens": self._tokens.cached} if self._tokens.cached else {}

    def _tool_calls(self) -> list[dict[str, Any]]:
        return [self._calls[index] for index in sorted(self._calls)]


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Embeddings(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage | None = None


class _Rank(msgspec.Struct):
    index: int
    relevance_score: float


class _Ranks(msgspec.Struct):
    results: list[_Rank]


class _Image(msgspec.Struct):
    b64_json: str | None = None
    url: str | None = None


class _Images(msgspec.Struct):
    data: list[_Image]


def embeddings(body: bytes, count: int) -> list[Result]:
    """The vectors of so many texts. The tokens of all are counted with the first one, since the answer has one sum.

    Raises:
        UpstreamBroken: the answer is not of the form, or has not a vector for each text.
    """
    answer = _decode(_Embeddings, body)
    vectors = [vector.embedding for vector in sorted(answer.data, key=lambda vector: vector.index)]
    if len(vectors) != count:
        raise UpstreamBroken(f"The answer has {len(vectors)} vectors for {count} texts.")
    total = answer.usage.prompt_tokens if answer.usage is not None else 0
    return [
        (vector, {"input_tokens_count": 0 if number else total, "generated_tokens_count": 0})
        for number, vector in enumerate(vectors)
    ]


def ranked(query: str, documents: Sequence[str], body: bytes) -> list[list[Any]]:
    """``[[query, document], score]`` for each document that the answer ranks.

    Raises:
        UpstreamBroken: the answer is not of the form, or ranks a document that there is not.
    """
    results = _decode(_Ranks, body).results
    if any(not 0 <= rank.index < len(documents) for rank in results):
        raise UpstreamBroken("The answer ranks a document that was not sent.")
    return [[[query, documents[rank.index]], rank.relevance_score] for rank in results]


def media(task: Task, body: bytes, seconds: float) -> Result:
    """Speech and images are base64, a transcription is the answer's JSON.

    Raises:
        UpstreamBroken: there is no image in the answer.
    """
    if task is Task.SPEECH:
        predicted = base64.b64encode(body).decode()
    elif task is Task.IMAGE:
        images = _decode(_Images, body).data
        predicted = (images[0].b64_json or images[0].url or "") if images else ""
        if not predicted:
            raise UpstreamBroken("The answer has no image.")
    else:
        predicted = body.decode("utf-8", "replace")
    counts = {"input_tokens_count": 0, "generated_tokens_count": 0, "first_token_time": 0, "speed": 0}
    return predicted, {"request_id": "", "time_cost": seconds, **counts}


def meta(card: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
    """What the older clients ask about an instance before they use it. ``card`` is its entry in ``/v1/models``,
    ``status`` that in ``/admin/deployments``.

    ``message_format``: private models too take messages, so no client renders a chat template.
    """
    saas = str(status.get("pretrained_model_type", "")).startswith("saas/")
    backend = str(status.get("infer_backend", ""))
    task = card.get("task")
    return {
        "model_deploy_type": "saas" if saas else "proprietary",
        "backend": "saas" if saas else _BACKENDS.get(backend, backend),
        "message_format": True,
        "support_stream": task == Task.CHAT.value,
        "support_chat_template": False,
        "support_assistant_prefix": True,
        "embedding_mode": task == Task.EMBEDDING.value,
        "model_name": status.get("model") or card.get("id"),
    }


def plain(error: ByzerError) -> RuntimeError:
    """The error in a class that every Python can unpickle: the older client has none of ours."""
    code = error.vendor_code if isinstance(error, UpstreamError) and error.vendor_code else error.code
    return RuntimeError(f"{error.status} {code}: {error}")


def _decode(kind: type[Any], body: bytes) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except BAD_JSON as error:
        raise UpstreamBroken(f"The server's answer is not of its form: {error}.") from None
