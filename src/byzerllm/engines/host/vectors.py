"""``/v1/embeddings`` in OpenAI's form, ``/v1/rerank`` in that of Jina and Cohere, ``/v1/score`` in vLLM's."""

from __future__ import annotations

import base64
import struct
from typing import Any

from byzerllm.engines.host import generation
from byzerllm.engines.host.backend import Embedder, Reranker, Scores
from byzerllm.engines.host.fields import Fields, are_wholes
from byzerllm.engines.host.protocol import Answer, HttpRequest, Whole

MAX_TEXTS = 8192


async def embeddings(model: Embedder, request: HttpRequest, name: str) -> Answer:
    """A vector for each input.

    Raises:
        InvalidInput: it asks for what there is not, or is malformed.
        ContextExceeded: a text is too long.
    """
    fields = Fields(request.json())
    fields.ignore(*generation.WITHOUT_EFFECT)
    form = fields.choice("encoding_format", ("float", "base64"), "float")
    dimensions = fields.whole("dimensions", 1)
    texts = _read_texts(fields, "input")
    fields.refuse_rest()
    for i, text in enumerate(texts):
        generation.check_length(len(text), model, "input", f"'input[{i}]'")
    vectors = await model.embed(texts, dimensions)
    write = _as_base64 if form == "base64" else list
    data = [{"object": "embedding", "index": i, "embedding": write(row)} for i, row in enumerate(vectors.rows)]
    usage = {"prompt_tokens": vectors.tokens, "total_tokens": vectors.tokens}
    return Whole({"object": "list", "data": data, "model": name, "usage": usage})


def _as_base64(row: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()


def _read_texts(fields: Fields, name: str) -> Any:
    """A text, a list of texts, a list of tokens or a list of lists of tokens: as a list of texts or of tokens."""
    value = fields.raw(name)
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        value = [value]
    same = isinstance(value, list) and (
        all(isinstance(one, str) for one in value) or all(one and are_wholes(one) for one in value)
    )
    if not same or not value:
        raise fields.bad(name, "must be a text or a list of texts or tokens")
    if len(value) > MAX_TEXTS:
        raise fields.bad(name, f"has {len(value)} entries; at most {MAX_TEXTS} are possible")
    if not all(value):
        raise fields.bad(name, "has an empty text")
    return value


async def rerank(model: Reranker, request: HttpRequest, name: str) -> Answer:
    """The documents by their relevance for the query, the best first.

    Raises:
        InvalidInput: it asks for what there is not, or is malformed.
        ContextExceeded: a document is too long, with the query.
    """
    fields = Fields(request.json())
    fields.ignore(*generation.WITHOUT_EFFECT)
    query = fields.required("query")
    documents = _read_documents(fields)
    first = fields.whole("top_n", 1) or len(documents)
    shown = fields.flag("return_documents", True)
    fields.refuse_rest()
    scores = await _scores(model, [(query, text) for text in documents], "documents")
    order = sorted(range(len(documents)), key=lambda i: -scores.values[i])[:first]
    results = [
        {"index": i, "relevance_score": scores.values[i]} | ({"document": {"text": documents[i]}} if shown else {})
        for i in order
    ]
    usage = {"prompt_tokens": scores.tokens, "total_tokens": scores.tokens}
    return Whole({**generation.envelope("list", "rerank", name, request.at), "results": results, "usage": usage})


def _read_documents(fields: Fields) -> list[str]:
    value = fields.raw("documents")
    texts: list[Any] = (
        [one.get("text") if isinstance(one, dict) else one for one in value] if isinstance(value, list) else []
    )
    if not texts or not all(isinstance(text, str) for text in texts):
        raise fields.bad("documents", "must be a list of texts, or of objects with a 'text'")
    if len(texts) > MAX_TEXTS:
        raise fields.bad("documents", f"has {len(texts)} entries; at most {MAX_TEXTS} are possible")
    return texts


async def score(model: Reranker, request: HttpRequest, name: str) -> Answer:
    """One score for each pair: of one text with each of several, or of two lists of equal length.

    Raises:
        InvalidInput: it asks for what there is not, or is malformed.
        ContextExceeded: a pair is too long.
    """
    fields = Fields(request.json())
    fields.ignore(*generation.WITHOUT_EFFECT)
    newer = fields.raw("queries") is not None
    firsts = fields.strings("queries" if newer else "text_1")
    seconds = fields.strings("documents" if newer else "text_2")
    fields.refuse_rest()
    if not firsts or not seconds:
        raise fields.bad("text_1", "and 'text_2' (or 'queries' and 'documents') must be a text or a list of texts")
    if len(firsts) not in (1, len(seconds)):
        raise fields.bad("text_1", f"has {len(firsts)} texts and 'text_2' {len(seconds)}: it must be one, or as many")
    if len(seconds) > MAX_TEXTS:
        raise fields.bad("text_2", f"has {len(seconds)} entries; at most {MAX_TEXTS} are possible")
    if len(firsts) == 1:
        firsts *= len(seconds)
    scores = await _scores(model, list(zip(firsts, seconds, strict=True)), "documents" if newer else "text_2")
    data = [{"index": i, "object": "score", "score": value} for i, value in enumerate(scores.values)]
    usage = {"prompt_tokens": scores.tokens, "total_tokens": scores.tokens}
    return Whole({**generation.envelope("list", "score", name, request.at), "data": data, "usage": usage})


async def _scores(model: Reranker, pairs: list[tuple[str, str]], name: str) -> Scores:
    for i, (first, second) in enumerate(pairs):
        generation.check_length(len(first) + len(second), model, name, f"'{name}[{i}]', with what it is compared to,")
    return await model.score(pairs)
