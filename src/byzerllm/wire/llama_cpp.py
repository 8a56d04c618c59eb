"""What llama.cpp's server speaks: OpenAI's format, but for what clients know from vLLM, Cohere and Jina.

Facts: tools/server/README.md of llama.cpp, and its answers.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Generator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from byzerllm.errors import InvalidInput, UpstreamBroken, UpstreamError
from byzerllm.wire.base import BAD_JSON, Adapter, Request, Step, Steps, Task
from byzerllm.wire.engine import EngineWire, check_media

S = TypeVar("S", bound=msgspec.Struct)
_RENAMED = {"exceed_context_size_error": "context_length_exceeded"}
_UNREAD = re.compile(r"(\w+) input is not supported")
_MALFORMED = re.compile(r"Failed to parse (tools|messages): ")
_TOO_MANY = re.compile(r"Field 'n': Value must be between 1 <= value <= (\d+), but got (-?\d+)")
_NO_TOKEN = re.compile(r"_M_range_check: __n \(which is (\d+)\) >= this->size\(\) \(which is (\d+)\)")
_encode = msgspec.json.encode


class LlamaCppWire(EngineWire):
    """Its chats pass through."""

    name = "llama_cpp"
    asks_usage = False  # it tells them in any case

    def __init__(self) -> None:
        self.adapters: Mapping[Task, Adapter] = {
            Task.EMBEDDING: _embed,
            Task.RERANK: _rerank,
            Task.SCORE: _score,
            Task.TOKENIZE: _tokenize,
            Task.DETOKENIZE: _detokenize,
        }

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        error = super().error(status, headers, body)
        if error.vendor_type in _RENAMED:
            error.vendor_code, error.vendor_type = _RENAMED[error.vendor_type], "invalid_request_error"
        elif _explained(error):
            error.status, error.vendor_code, error.vendor_type = 400, "invalid_request", "invalid_request_error"
        return error


def _explained(error: UpstreamError) -> bool:
    """Say what is wrong with the request where llama.cpp takes the blame for it (500); false where it is not that."""
    if unread := _UNREAD.search(error.message):
        error.message = f"The instance reads no {unread[1]}: deploy it with mmproj=FILE, a projector that does."
    elif malformed := _MALFORMED.match(error.message):
        error.param = malformed[1]
    elif many := _TOO_MANY.search(error.message):
        error.message, error.param = _choices(int(many[1]), int(many[2])), "n"
    elif unknown := _NO_TOKEN.search(error.message):
        error.message, error.param = f"There is no token {unknown[1]}: the model has {unknown[2]}.", "tokens"
    else:
        return False
    return True


def _choices(slots: int, asked: int) -> str:
    if asked < 1:
        return "'n' must be at least 1."
    return f"'n' is at most {slots}, the slots of a worker: deploy it with --worker_concurrency {asked}."


# -- requests and answers, read --------------------------------------------------------------------------------------


class _Embedding(msgspec.Struct):
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None


class _Document(msgspec.Struct):
    text: str


class _Rerank(msgspec.Struct):
    query: str
    documents: list[str | _Document]
    top_n: int | None = None
    return_documents: bool | None = None


class _Score(msgspec.Struct):
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None


class _TokenizeText(msgspec.Struct):
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class _TokenizeChat(msgspec.Struct):
    messages: msgspec.Raw
    tools: msgspec.Raw = msgspec.Raw(b"null")
    chat_template_kwargs: msgspec.Raw = msgspec.Raw(b"null")
    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    return_token_strs: bool | None = None


_TEMPLATE = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt")
_NEUTRAL = {"model", "user", "stream"}  # of no effect on these answers


class _Detokenize(msgspec.Struct):
    tokens: list[Annotated[int, msgspec.Meta(ge=0)]]


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0


class _Vector(msgspec.Struct):
    embedding: list[float]


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage


class _Rank(msgspec.Struct):
    index: int
    relevance_score: float


class _Ranks(msgspec.Struct):
    results: list[_Rank]
    usage: _Usage


class _Piece(msgspec.Struct):
    id: int
    piece: str | list[int]  # bytes where they are no UTF-8


class _Tokens(msgspec.Struct):
    tokens: list[_Piece]


class _Text(msgspec.Struct):
    content: str = ""
    prompt: str = ""


class _Meta(msgspec.Struct):
    n_ctx: int


class _Model(msgspec.Struct):
    meta: _Meta


class _Models(msgspec.Struct):
    data: list[_Model]


def _asked(request: Request, kind: type[S]) -> S:
    """The request, all of whose fields are known.

    Raises:
        InvalidInput: names the field that is not, or is of the wrong kind.
    """
    for name in request.fields.keys() - {*kind.__struct_fields__, *_NEUTRAL}:
        raise InvalidInput(f"llama_cpp has no {name} here: leave it out.", param=name)
    return _read(request, kind)


def _read(request: Request, kind: type[S]) -> S:
    try:
        return msgspec.json.decode(_encode(request.fields), type=kind)
    except BAD_JSON as error:
        raise InvalidInput(f"The request is not of the right form: {error}.") from None


def _answered(body: bytes, kind: type[S]) -> S:
    try:
        return msgspec.json.decode(body, type=kind)
    except BAD_JSON as error:
        raise UpstreamBroken(f"llama.cpp's answer has another form than expected: {error}.") from None


# -- the adapters ----------------------------------------------------------------------------------------------------


def _embed(request: Request, model: str, now: int) -> Steps | None:
    """llama.cpp makes vectors of one length only; their first numbers are a shorter vector."""
    asked = _read(request, _Embedding)  # llama.cpp reads the rest
    if asked.dimensions is None:
        return None
    if asked.dimensions < 1:
        raise InvalidInput("'dimensions' must be at least 1.", param="dimensions")
    return _embed_shorter(request, model, asked.dimensions, packed=asked.encoding_format == "base64")


def _embed_shorter(request: Request, model: str, dimensions: int, *, packed: bool) -> Steps:
    fields: dict[str, Any] = {k: v for k, v in request.fields.items() if k not in ("dimensions", "encoding_format")}
    answer = _answered((yield Step("POST", "/v1/embeddings", _encode({**fields, "model": model}))), _Vectors)
    data = []
    for index, row in enumerate(answer.data):
        if len(row.embedding) < dimensions:
            raise InvalidInput(f"'dimensions' must be at most {len(row.embedding)}.", param="dimensions")
        vector = _normalized(row.embedding[:dimensions])
        shown = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode("ascii") if packed else vector
        data.append({"object": "embedding", "index": index, "embedding": shown})
    return _encode({"object": "list", "data": data, "model": model, "usage": answer.usage})


def _normalized(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(number * number for number in vector)) or 1.0
    return [number / length for number in vector]


def _rerank(request: Request, model: str, now: int) -> Steps | None:
    """llama.cpp ranks plain texts, and never repeats them."""
    asked = _asked(request, _Rerank)
    if asked.top_n is not None and asked.top_n < 1:
        raise InvalidInput("'top_n' must be at least 1.", param="top_n")
    texts = [document if isinstance(document, str) else document.text for document in asked.documents]
    if not texts:
        raise InvalidInput("'documents' is empty.", param="documents")
    if texts == asked.documents and not asked.return_documents:
        return None
    return _rerank_texts(asked, texts, model)


def _rerank_texts(asked: _Rerank, texts: list[str], model: str) -> Steps:
    answer = yield from _rank(asked.query, texts, model)
    results: list[dict[str, Any]] = []
    for rank in answer.results[: asked.top_n]:
        results.append({"index": rank.index, "relevance_score": rank.relevance_score})
        if asked.return_documents:
            results[-1]["document"] = {"text": texts[rank.index]}
    return _encode({"object": "list", "model": model, "results": results, "usage": answer.usage})


def _rank(query: str, texts: Sequence[str], model: str) -> Generator[Step, bytes, _Ranks]:
    body = {"model": model, "query": query, "documents": texts}
    answer = _answered((yield Step("POST", "/v1/rerank", _encode(body))), _Ranks)
    if sorted(rank.index for rank in answer.results) != list(range(len(texts))):
        raise UpstreamBroken("llama.cpp ranked other texts than it was given.")
    return answer


def _score(request: Request, model: str, now: int) -> Steps:
    """vLLM's: one text against several, or pair by pair."""
    asked = _asked(request, _Score)
    scores: list[float] = []
    usage = _Usage()
    for query, texts in _pairs(asked):
        answer = yield from _rank(query, texts, model)
        scores += [rank.relevance_score for rank in sorted(answer.results, key=lambda rank: rank.index)]
        usage.prompt_tokens += answer.usage.prompt_tokens
        usage.total_tokens += answer.usage.total_tokens
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    return _encode({"object": "list", "created": now, "model": model, "data": data, "usage": usage})


def _pairs(asked: _Score) -> list[tuple[str, list[str]]]:
    """Each text with those that it is compared with."""
    first = asked.text_1 if asked.text_1 is not None else asked.queries
    second = asked.text_2 if asked.text_2 is not None else asked.documents
    if not first or not second:
        raise InvalidInput("Give 'text_1' and 'text_2', or 'queries' and 'documents', and neither empty.")
    lefts, rights = ([side] if isinstance(side, str) else side for side in (first, second))
    if len(lefts) == 1:
        return [(lefts[0], rights)]
    if len(lefts) != len(rights):
        raise InvalidInput(f"{len(lefts)} texts cannot be compared with {len(rights)}: give one, or as many.")
    return [(left, [right]) for left, right in zip(lefts, rights, strict=True)]


def _tokenize(request: Request, model: str, now: int) -> Steps:
    """vLLM's: of a text, or of a chat as the model reads it."""
    check_media(request)  # llama.cpp would fetch a chat's images for its template too
    text = request.fields.get("prompt")
    chat = request.fields.get("messages")
    if (text is None) is (chat is None):
        raise InvalidInput("Give either 'prompt' or 'messages'.", param="prompt")
    asked: _TokenizeText | _TokenizeChat
    asked = _asked(request, _TokenizeText) if chat is None else _asked(request, _TokenizeChat)
    if isinstance(asked, _TokenizeText):
        prompt, special = asked.prompt, asked.add_special_tokens
    else:
        fields = {name: value for name, value in request.fields.items() if name in _TEMPLATE}
        prompt = _answered((yield Step("POST", "/apply-template", _encode(fields))), _Text).prompt
        special = asked.add_special_tokens  # the template has its own
    content = {"content": prompt, "add_special": special, "with_pieces": True}
    pieces = _answered((yield Step("POST", "/tokenize", _encode(content))), _Tokens).tokens
    models = _answered((yield Step("GET", "/v1/models")), _Models)
    strings = [p.piece if isinstance(p.piece, str) else bytes(p.piece).decode("utf-8", "replace") for p in pieces]
    return _encode(
        {
            "count": len(pieces),
            "max_model_len": models.data[0].meta.n_ctx if models.data else None,
            "tokens": [piece.id for piece in pieces],
            "token_strs": strings if asked.return_token_strs else None,
        }
    )


def _detokenize(request: Request, model: str, now: int) -> Steps:
    body = _encode({"tokens": _asked(request, _Detokenize).tokens})
    return _encode({"prompt": _answered((yield Step("POST", "/detokenize", body)), _Text).content})
