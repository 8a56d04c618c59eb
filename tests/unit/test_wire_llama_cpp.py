"""What clients know from vLLM, Cohere and Jina, made of what llama.cpp's server has."""

from __future__ import annotations

import base64
import json
import re
import struct
from typing import Any

import msgspec
import pytest

from byzerllm.errors import InvalidInput, UpstreamBroken
from byzerllm.wire import ENGINE_WIRES
from byzerllm.wire.base import Request, Task

WIRE = ENGINE_WIRES["llama_cpp"]
RANKS = {"results": [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": -2.0}],
         "usage": {"prompt_tokens": 7, "total_tokens": 7}}  # fmt: skip
VECTORS = {"data": [{"embedding": [3.0, 4.0, 12.0]}, {"embedding": [0.0, 0.0, 1.0]}],
           "usage": {"prompt_tokens": 2, "total_tokens": 2}}  # fmt: skip
MODELS = {"data": [{"id": "m", "meta": {"n_ctx": 2048}}]}


def request(task: Task, **fields: Any) -> Request:
    raw = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in {"model": "mine", **fields}.items()}
    return Request(task, raw, "mine", False)


def answer(task: Task, *upstream: Any, **fields: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """The client's answer, and the paths and bodies of the steps to it."""
    steps = WIRE.adapters[task](request(task, **fields), "m", 99)
    assert steps is not None
    taken = []
    step = next(steps)
    for reply in upstream:
        taken.append((f"{step.method} {step.path}", json.loads(step.body) if step.body else None))
        try:
            step = steps.send(json.dumps(reply).encode() if not isinstance(reply, bytes) else reply)
        except StopIteration as end:
            return json.loads(end.value), taken
    raise AssertionError(f"it asks on: {step}")


def refusal(task: Task, **fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        next(WIRE.adapters[task](request(task, **fields), "m", 99) or iter(()))
    return caught.value


def passes(task: Task, **fields: Any) -> bool:
    return WIRE.adapters[task](request(task, **fields), "m", 99) is None


def test_chats_pass_through() -> None:
    assert not {Task.CHAT, Task.COMPLETION, Task.RESPONSES} & WIRE.adapters.keys()
    assert WIRE.path(Task.CHAT) == "/v1/chat/completions"


def test_plain_embeddings_and_rankings_pass_through() -> None:
    assert passes(Task.EMBEDDING, input=["a"], encoding_format="base64")
    assert passes(Task.RERANK, query="a", documents=["b"], top_n=1, return_documents=False)


def test_the_first_numbers_of_a_vector_make_a_shorter_one() -> None:
    found, steps = answer(Task.EMBEDDING, VECTORS, input=["a", "b"], dimensions=2)
    assert steps == [("POST /v1/embeddings", {"model": "m", "input": ["a", "b"]})]
    assert [row["embedding"] for row in found["data"]] == [[0.6, 0.8], [0.0, 0.0]]
    assert [row["index"] for row in found["data"]] == [0, 1]
    assert (found["model"], found["usage"]["prompt_tokens"]) == ("m", 2)
    packed, _ = answer(Task.EMBEDDING, VECTORS, input="a", dimensions=2, encoding_format="base64")
    numbers = struct.unpack("<2f", base64.b64decode(packed["data"][0]["embedding"]))
    assert numbers == pytest.approx((0.6, 0.8))


def test_more_numbers_than_there_are_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at most 3"):
        answer(Task.EMBEDDING, VECTORS, input="a", dimensions=4)
    assert refusal(Task.EMBEDDING, input="a", dimensions=0).param == "dimensions"
    assert "dimensions" in refusal(Task.EMBEDDING, input="a", dimensions="2").message


def test_a_ranking_that_repeats_its_documents() -> None:
    documents = [{"text": "red"}, "blue"]
    found, steps = answer(Task.RERANK, RANKS, query="q", documents=documents, return_documents=True)
    assert steps == [("POST /v1/rerank", {"model": "m", "query": "q", "documents": ["red", "blue"]})]
    assert found["results"] == [
        {"index": 1, "relevance_score": 0.5, "document": {"text": "blue"}},
        {"index": 0, "relevance_score": -2.0, "document": {"text": "red"}},
    ]
    assert found["usage"]["total_tokens"] == 7
    best, _ = answer(Task.RERANK, RANKS, query="q", documents=documents, top_n=1)
    assert best["results"] == [{"index": 1, "relevance_score": 0.5}]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "q", "documents": []}, "empty"),
        ({"query": "q", "documents": "a"}, "documents"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "at least 1"),
        ({"query": "q", "documents": ["a"], "top_n": "1"}, "top_n"),
        ({"query": "q", "documents": ["a"], "max_chunks_per_doc": 1}, "no max_chunks_per_doc"),
    ],
)
def test_a_ranking_that_cannot_be_made_is_refused(fields: dict[str, Any], said: str) -> None:
    assert said in refusal(Task.RERANK, **fields).message


@pytest.mark.parametrize(("left", "right"), [("text_1", "text_2"), ("queries", "documents")])
def test_scores_stand_in_the_order_of_the_texts(left: str, right: str) -> None:
    found, steps = answer(Task.SCORE, RANKS, **{left: "q", right: ["a", "b"]})
    assert steps == [("POST /v1/rerank", {"model": "m", "query": "q", "documents": ["a", "b"]})]
    assert found == {
        "object": "list",
        "created": 99,
        "model": "m",
        "data": [{"index": 0, "object": "score", "score": -2.0}, {"index": 1, "object": "score", "score": 0.5}],
        "usage": RANKS["usage"],
    }


def test_as_many_texts_are_scored_pair_by_pair() -> None:
    one = {"results": [{"index": 0, "relevance_score": 0.25}], "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    found, steps = answer(Task.SCORE, one, one, text_1=["q", "r"], text_2=["a", "b"])
    assert [(body["query"], body["documents"]) for _, body in steps] == [("q", ["a"]), ("r", ["b"])]
    assert [row["index"] for row in found["data"]] == [0, 1]
    assert found["usage"]["prompt_tokens"] == 6


@pytest.mark.parametrize(
    "fields",
    [{}, {"text_1": "a"}, {"text_1": "a", "text_2": []}, {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]},
     {"text_1": 1, "text_2": "a"}, {"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 5}],
)  # fmt: skip
def test_texts_that_cannot_be_compared_are_refused(fields: dict[str, Any]) -> None:
    assert refusal(Task.SCORE, **fields)


def test_a_ranking_of_other_texts_is_no_answer() -> None:
    with pytest.raises(UpstreamBroken, match="other texts"):
        answer(Task.SCORE, RANKS, text_1="q", text_2=["a", "b", "c"])
    with pytest.raises(UpstreamBroken, match="another form"):
        answer(Task.SCORE, b"[]", text_1="q", text_2="a")


def test_the_tokens_of_a_text() -> None:
    tokens = {"tokens": [{"id": 5, "piece": "he"}, {"id": 7, "piece": [228, 189]}]}
    found, steps = answer(Task.TOKENIZE, tokens, MODELS, prompt="hey", return_token_strs=True)
    assert steps == [
        ("POST /tokenize", {"content": "hey", "add_special": True, "with_pieces": True}),
        ("GET /v1/models", None),
    ]
    assert found == {"count": 2, "max_model_len": 2048, "tokens": [5, 7], "token_strs": ["he", "\ufffd"]}
    plain, steps = answer(Task.TOKENIZE, tokens, MODELS, prompt="", add_special_tokens=False)
    assert steps[0][1]["add_special"] is False
    assert plain["token_strs"] is None


def test_the_tokens_of_a_chat_are_those_of_its_prompt() -> None:
    messages = [{"role": "user", "content": "hi"}]
    reply = {"tokens": [{"id": 1, "piece": "x"}]}
    found, steps = answer(Task.TOKENIZE, {"prompt": "<user>hi"}, reply, MODELS, messages=messages, tools=[])
    assert steps[:2] == [
        ("POST /apply-template", {"messages": messages, "tools": []}),
        ("POST /tokenize", {"content": "<user>hi", "add_special": False, "with_pieces": True}),
    ]
    assert found["count"] == 1


@pytest.mark.parametrize(
    "fields", [{}, {"prompt": "a", "messages": []}, {"prompt": ["a"]}, {"prompt": "a", "tools": []}]
)
def test_what_has_no_tokens_is_refused(fields: dict[str, Any]) -> None:
    assert refusal(Task.TOKENIZE, **fields)


def test_the_text_of_tokens() -> None:
    found, steps = answer(Task.DETOKENIZE, {"content": "hey"}, tokens=[5, 7])
    assert (found, steps) == ({"prompt": "hey"}, [("POST /detokenize", {"tokens": [5, 7]})])
    assert refusal(Task.DETOKENIZE, tokens=["a"])


# -- errors ----------------------------------------------------------------------------------------------------------


def test_errors_have_the_names_and_the_status_that_clients_know() -> None:
    long = {"code": 400, "message": "request (9 tokens) exceeds", "type": "exceed_context_size_error", "n_ctx": 8}
    found = WIRE.error(400, {}, json.dumps({"error": long}).encode())
    assert (found.status, found.vendor_code, found.vendor_type) == (
        400, "context_length_exceeded", "invalid_request_error",
    )  # fmt: skip
    unread = {"code": 500, "message": "audio input is not supported - hint: mmproj", "type": "server_error"}
    found = WIRE.error(500, {}, json.dumps({"error": unread}).encode())
    assert (found.status, found.vendor_type) == (400, "invalid_request_error")
    assert found.message.startswith("The instance reads no audio: deploy it with mmproj=FILE")
    other = WIRE.error(500, {}, b'{"error":{"code":500,"message":"no","type":"server_error"}}')
    assert (other.status, other.message, other.vendor_type) == (500, "no", "server_error")


@pytest.mark.parametrize(
    ("said", "message", "param"),
    [
        ("Failed to parse tools: Expected 'tools' to be an array, got 5; tools = 5", "an array, got 5", "tools"),
        ("Failed to parse messages: Missing tool call type: {}", "Missing tool call type", "messages"),
        (
            "Field 'n': Value must be between 1 <= value <= 1, but got 2",
            r"^'n' is at most 1, the slots of a worker: deploy it with --worker_concurrency 2\.$",
            "n",
        ),
        ("Field 'n': Value must be between 1 <= value <= 1, but got 0", r"^'n' must be at least 1\.$", "n"),
        ("Field 'n': Value must be between 1 <= value <= 4, but got -1", r"^'n' must be at least 1\.$", "n"),
        (
            "vector::_M_range_check: __n (which is 999) >= this->size() (which is 512)",
            r"^There is no token 999: the model has 512\.$",
            "tokens",
        ),
    ],
)
def test_a_clients_mistake_is_none_of_llama_cpps(said: str, message: str, param: str) -> None:
    body = json.dumps({"error": {"code": 500, "message": said, "type": "server_error"}}).encode()
    found = WIRE.error(500, {}, body)
    assert (found.status, found.vendor_code, found.vendor_type) == (400, "invalid_request", "invalid_request_error")
    assert re.search(message, found.message)
    assert found.param == param
