"""What the server's answers are in the older wire."""

from __future__ import annotations

import json
import pickle

import pytest

from byzerllm.errors import InvalidInput, UpstreamBroken, UpstreamError
from byzerllm.gateway.legacy import answers
from byzerllm.gateway.legacy.answers import Reply
from byzerllm.wire.base import Task
from byzerllm.wire.events import Failure, Finish, Reasoning, Started, Text, Tokens, ToolCall


def test_a_whole_answer_has_its_counts_and_times() -> None:
    reply = Reply()
    reply.add([Started("id-1", "m"), Text("hel"), Text("lo"), Tokens(3, 8, cached=2), Finish("length")])
    text, metadata = reply.result(2.0)
    assert text == "hello"
    assert metadata == {
        "request_id": "id-1",
        "input_tokens_count": 3,
        "generated_tokens_count": 8,
        "time_cost": 2.0,
        "first_token_time": 0,
        "speed": 4.0,
        "finish_reason": "length",
        "cache_read_input_tokens": 2,
    }


def test_an_answer_that_took_no_time_or_said_nothing_is_an_answer() -> None:
    text, metadata = Reply().result(0.0)
    assert (text, metadata["speed"], metadata["input_tokens_count"]) == ("", 0.0, 0)


def test_a_stream_item_has_all_that_came_and_stays_as_it_is() -> None:
    reply = Reply()
    assert not reply.add([Started("id-1", "m")])  # nothing to show
    assert reply.add([Reasoning("hm"), Text("a")])
    item = reply.item()
    reply.add([Text("b"), ToolCall(0, "c1", "f", '{"x"'), ToolCall(0, arguments=": 1}"), Tokens(1, 2)])
    assert item.outputs[0].text == "a"
    later = reply.item().outputs[0]
    assert (later.text, later.metadata.reasoning_content) == ("ab", "hm")
    assert later.metadata.generated_tokens_count == 2
    function = {"name": "f", "arguments": '{"x": 1}'}
    assert later.metadata.tool_calls == [{"id": "c1", "type": "function", "function": function}]
    assert pickle.loads(pickle.dumps(item)) == item


def test_what_came_before_a_failure_is_kept() -> None:
    reply = Reply()
    with pytest.raises(UpstreamError):
        reply.add([Text("a"), Failure(UpstreamError("no balance", status=402))])
    assert reply.text == "a"


def test_vectors_come_in_the_order_of_the_texts_and_tokens_are_counted_once() -> None:
    body = {"data": [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1]}], "usage": {"prompt_tokens": 9}}
    (first, counted), (second, none) = answers.embeddings(json.dumps(body).encode(), 2)
    assert (first, second) == ([1.0], [2.0])
    assert (counted["input_tokens_count"], none["input_tokens_count"]) == (9, 0)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data": []}', b'{"data": [{"embedding": "aGk="}]}'])
def test_an_answer_without_the_vectors_is_broken(body: bytes) -> None:
    with pytest.raises(UpstreamBroken):
        answers.embeddings(body, 1)


def test_scores_go_with_their_pairs() -> None:
    body = b'{"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]}'
    assert answers.ranked("q", ["a", "b"], body) == [[["q", "b"], 0.9], [["q", "a"], 0.1]]
    with pytest.raises(UpstreamBroken):
        answers.ranked("q", ["a"], body)


def test_media_are_base64_and_transcriptions_json() -> None:
    assert answers.media(Task.SPEECH, b"RIFF", 1.0)[0] == "UklGRg=="
    assert answers.media(Task.IMAGE, b'{"data": [{"b64_json": "aGk="}]}', 1.0)[0] == "aGk="
    assert answers.media(Task.TRANSCRIPTION, b'{"text": "hi"}', 1.0)[0] == '{"text": "hi"}'
    with pytest.raises(UpstreamBroken):
        answers.media(Task.IMAGE, b'{"data": []}', 1.0)


@pytest.mark.parametrize(
    ("kind", "infer_backend", "task", "expected"),
    [
        ("saas/openai", "", "chat", ("saas", "saas", True, False)),
        ("saas/openai", "", "embedding", ("saas", "saas", False, True)),
        ("custom/auto", "vllm", "chat", ("proprietary", "ray/vllm", True, False)),
        ("custom/auto", "llama_cpp", "chat", ("proprietary", "llama_cpp", True, False)),
    ],
)
def test_what_clients_ask_before_they_use_an_instance(
    kind: str, infer_backend: str, task: str, expected: tuple[str, str, bool, bool]
) -> None:
    status = {"pretrained_model_type": kind, "infer_backend": infer_backend, "model": "gpt"}
    meta = answers.meta({"id": "m", "task": task}, status)
    found = meta["model_deploy_type"], meta["backend"], meta["support_stream"], meta["embedding_mode"]
    assert found == expected
    assert meta["message_format"] is True
    assert meta["model_name"] == "gpt"


def test_errors_are_of_a_class_that_every_python_has() -> None:
    refused = answers.plain(UpstreamError("wrong key", status=401, vendor_code="invalid_api_key"))
    assert type(refused) is RuntimeError
    assert str(refused) == "401 invalid_api_key: wrong key"
    assert str(answers.plain(InvalidInput("no", hint="Do."))) == "400 invalid_request: no Do."
