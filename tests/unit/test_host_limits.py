"""Requests that are too much for the host: refused before it takes seconds to find that out."""

from __future__ import annotations

from typing import Any

import pytest
from tests.hosted import Host, Speller
from tests.unit.test_host_tasks import Embedder, Reranker, Speaker


@pytest.mark.parametrize("value", [["a", "b" * 101], [[1], [2] * 101]])
def test_a_text_longer_than_any_tokens_is_refused_before_it_is_read(value: Any) -> None:
    reply = Host(Embedder(), "embedding").post("/v1/embeddings", {"input": value})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", "input")
    assert reply.error["message"].startswith("'input[1]' is 101 characters long; the model reads at most 20 tokens")


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/v1/rerank", {"query": "q" * 50, "documents": ["a", "b" * 51]}, "documents"),
        ("/v1/score", {"text_1": "q" * 50, "text_2": ["a", "b" * 51]}, "text_2"),
        ("/v1/score", {"queries": "q" * 50, "documents": ["a", "b" * 51]}, "documents"),
    ],
)
def test_a_pair_longer_than_any_tokens_is_refused_before_it_is_read(
    path: str, fields: dict[str, Any], named: str
) -> None:
    reply = Host(Reranker(), "reranker").post(path, fields)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", named)
    assert f"'{named}[1]', with what it is compared to, is 101 characters long" in reply.error["message"]


def test_pairs_are_not_without_number() -> None:
    reply = Host(Reranker(), "reranker").post("/v1/score", {"text_1": "a", "text_2": ["b"] * 8193})
    assert (reply.status, reply.error["param"]) == (400, "text_2")


def test_a_text_too_long_to_be_spoken_is_refused() -> None:
    host = Host(Speaker(), "speech")
    assert host.post("/v1/audio/speech", {"input": "a" * 4096}).status == 200
    assert host.post("/v1/audio/speech", {"input": "a" * 4097}).error["param"] == "input"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": "a" * 1001}, "prompt"),
        ({"messages": [{"role": "user", "content": "a" * 1001}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "a" * 1001}]}, "tools"),
    ],
)
def test_tokens_are_counted_of_what_the_model_could_read(fields: dict[str, Any], named: str) -> None:
    model = Speller()
    reply = Host(model).post("/tokenize", fields)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", named)
    assert (model.encoded, model.prompts) == (0, [])


@pytest.mark.parametrize("depth", [300, 600, 900, 940, 970])
@pytest.mark.parametrize("field", ["tools", "metadata", "chat_template_kwargs", "response_format"])
def test_a_deeply_nested_body_is_refused_or_answered(field: str, depth: int) -> None:
    nested = '{"a":' * depth + "1" + "}" * depth
    value = {
        "tools": f"[{nested}]",
        "response_format": f'{{"type": "json_schema", "json_schema": {{"schema": {nested}}}}}',
    }
    body = '{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "%s": %s}'
    reply = Host(Speller(characters=10**6)).post(
        "/v1/chat/completions", (body % (field, value.get(field, nested))).encode()
    )
    assert reply.status in (200, 400)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "a" * 1000}}]},
        {"role": "assistant", "content": "", "reasoning_content": "a" * 1000},
    ],
)
def test_what_goes_beside_the_content_of_a_message_counts_too(message: dict[str, Any]) -> None:
    model = Speller()
    reply = Host(model).post("/v1/chat/completions", {"messages": [message]})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", "messages")
    assert model.prompts == []


def test_prompts_are_counted_before_they_are_read() -> None:
    model = Speller()
    assert Host(model).post("/v1/completions", {"prompt": ["a"] * 1025}).error["param"] == "prompt"
    assert model.encoded == 0
