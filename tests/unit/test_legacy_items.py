"""What the items of the older wire ask of the server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.errors import InvalidInput
from byzerllm.gateway.legacy import items
from byzerllm.gateway.legacy.content import content, form
from byzerllm.gateway.legacy.items import Kind
from byzerllm.wire.base import Outgoing, Task

BASE64 = "iVBORw0KGgo" * 8 + "A=="
SOUND = "UklGRg" * 12
DATA_URL = f"data:image/png;base64,{BASE64}"


def body(request: Outgoing) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.body)
    return found


def chat(**item: Any) -> dict[str, Any]:
    return body(items.chat({"instruction": "hello", **item}, "m"))


# Which kind


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({}, Kind.CHAT),
        ({"history": [], "max_length": 4000}, Kind.CHAT),
        ({"generation.stream": True}, Kind.CHAT),
        ({"meta": True}, Kind.META),
        ({"meta": False}, Kind.CHAT),
        ({"tokenizer": True}, Kind.TOKENIZER),
        ({"apply_chat_template": True}, Kind.TEMPLATE),
        ({"embedding": True}, Kind.EMBEDDING),
        ({"embedding": True, "embed_rerank": True}, Kind.RERANK),
        ({"gen.request_id": "7", "gen.abort": True}, Kind.ABORT),
        ({"gen.abort": False}, Kind.ABORT),
    ],
)
def test_the_keys_of_an_item_say_what_it_asks_for(keys: dict[str, Any], kind: Kind) -> None:
    assert items.kind({"instruction": "", **keys}) is kind


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"history": []}'])
def test_what_is_no_item_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        items.decode(text)


# Chats


def test_a_chat_has_its_history_and_what_the_caller_set_and_nothing_else() -> None:
    history = [{"role": "system", "content": "be brief", "metadata": 1}, {"role": "assistant", "content": "yes"}]
    assert chat(history=history, human_as_model=True, inference_mode=True, timeout_s=3) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "hello"},
        ],
    }


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"max_length": "2000"}, {"max_tokens": 2000}),
        ({"max_length": None}, {}),
        ({"max_length": 5, "gen.max_tokens": 6}, {"max_tokens": 6}),
        ({"top_p": "0.5", "temperature": 0}, {"top_p": 0.5, "temperature": 0.0}),
        ({"stopping_sequences": "a,b"}, {"stop": ["a", "b"]}),
        ({"gen.stop": '["x"]'}, {"stop": ["x"]}),
        ({"gen.stop": "x"}, {"stop": "x"}),
        ({"gen.top_k": 3, "generation.top_k": 4}, {"top_k": 4}),
        ({"gen.incremental_output": False, "gen.seed": None}, {}),
        ({"extra_request_params": {"enable_thinking": True, "model": "x", "stream": True}}, {"enable_thinking": True}),
        ({"generation.stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
    ],
)
def test_the_callers_settings_become_fields(given: dict[str, Any], sent: dict[str, Any]) -> None:
    found = chat(**given)
    del found["messages"], found["model"]
    assert found == sent


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_length": "many"},
        {"temperature": []},
        {"history": "x"},
        {"history": ["x"]},
        {"gen.model": "another"},
        {"extra_request_params": "x"},
        {"image": "me.png"},
    ],
)
def test_what_no_request_can_hold_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as error:
        chat(**wrong)
    assert error.value.param == next(iter(wrong))


def test_after_a_message_of_the_user_the_instruction_is_the_beginning_of_the_answer() -> None:
    question = {"role": "user", "content": "name a colour"}
    assert chat(history=[question])["messages"][-1] == {"role": "assistant", "content": "hello"}
    prefixed = chat(history=[question], **{"gen.response_prefix": "true"})
    assert prefixed["messages"][-1] == {"role": "assistant", "content": "hello", "prefix": True}
    assert "response_prefix" not in prefixed


def test_an_image_beside_the_text_goes_with_it() -> None:
    url = f"data:image/jpeg;base64,{BASE64}"
    parts = chat(image=BASE64)["messages"][0]["content"]
    assert parts == [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "hello"}]


# Content


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ([{"text": "a"}], [{"type": "text", "text": "a"}]),
        (
            [{"image": BASE64, "text": "what?", "detail": "high"}],
            [
                {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{BASE64}", "detail": "high"}},
                {"type": "text", "text": "what?"},
            ],
        ),
        (
            [{"image": DATA_URL}, {"text": "b"}],
            [{"type": "image_url", "image_url": {"url": DATA_URL}}, {"type": "text", "text": "b"}],
        ),
        (
            [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}],
            [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}],
        ),
        (
            [{"audio": f"data:audio/mpeg;base64,{SOUND}"}, {"audio": SOUND}, {"audio_url": "https://x/y.wav"}],
            [
                {"type": "input_audio", "input_audio": {"data": SOUND, "format": "mp3"}},
                {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}},
                {"type": "audio_url", "audio_url": {"url": "https://x/y.wav"}},
            ],
        ),
    ],
)
def test_parts_written_as_json_are_parts(written: list[Any], parts: list[Any]) -> None:
    assert content(json.dumps(written)) == parts
    assert content(written) == parts


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "7",
        "null",
        "[]",
        "[1, 2]",
        '{"text": "a"}',
        '[{"name": "a"}]',
        '[{"text": 1}]',
        '[{"image": "nginx:latest"}]',
        '[{"image": "ubuntu", "text": "a container"}]',
        '[{"text": "a"}, "b"]',
        '[{"type": "function"}]',
        "<_image_>/etc/passwd</_image_> what?",
        "[" * 100_000,
    ],
)
def test_a_prompt_that_happens_to_look_like_something_stays_the_text_it_is(text: str) -> None:
    assert content(text) == text


@given(st.text())
def test_any_text_is_some_content(text: str) -> None:
    assert content(text) == text or isinstance(content(text), list)


def test_tags_with_data_are_parts_before_the_rest_of_the_text() -> None:
    assert content(f"what is <_image_>{DATA_URL}</_image_> this?") == [
        {"type": "image_url", "image_url": {"url": DATA_URL}},
        {"type": "text", "text": "what is  this?"},
    ]


# Other kinds


def test_texts_to_embed_go_up_together_as_far_as_every_vendor_takes_them() -> None:
    same = [{"instruction": str(n), "embedding": True, "max_length": 4096, "top_p": 0.95} for n in range(23)]
    other = {"instruction": "x", "embedding": True, "gen.dimensions": 3}
    groups = items.groups([*same, other, {"instruction": "", "meta": True}])
    assert [len(group) for group in groups] == [10, 10, 3, 1, 1]
    assert body(items.embedding(groups[2], "m")) == {"model": "m", "input": ["20", "21", "22"]}
    assert body(items.embedding(groups[3], "m")) == {"model": "m", "input": ["x"], "dimensions": 3}


def test_chats_are_never_put_together() -> None:
    assert [len(group) for group in items.groups([{"instruction": "a"}, {"instruction": "a"}])] == [1, 1]


def test_pairs_to_rank_are_asked_for_by_query() -> None:
    found = items.reranks({"instruction": [["q", "a"], ["r", "b"], ["q", "c"]], "embed_rerank": True}, "m")
    assert [body(request) for _, _, request in found] == [
        {"model": "m", "query": "q", "documents": ["a", "c"]},
        {"model": "m", "query": "r", "documents": ["b"]},
    ]
    assert items.pairs({"instruction": ["q", "a"]}) == [("q", "a")]


@pytest.mark.parametrize("wrong", ["q", [["q"]], [["q", "a", "b"]], [7], ["q"]])
def test_what_is_no_pair_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInput):
        items.reranks({"instruction": wrong}, "m")


def test_a_stream_has_the_callers_id_or_one_of_its_own() -> None:
    assert items.stream_id({"instruction": "", "gen.request_id": "mine"}) == "mine"
    first, second = (items.stream_id({"instruction": ""}) for _ in range(2))
    assert first != second


def test_speech_and_images_are_written_as_objects() -> None:
    speech = form('{"input": "hi", "voice": "echo", "response_format": "wav", "chunk_size": 1}')
    assert speech is not None
    wanted = {"model": "m", "input": "hi", "voice": "echo", "response_format": "wav"}
    assert body(items.media(speech, Task.SPEECH, "m")) == wanted
    image = form('[{"input": "a cat", "size": "256x256"}]')
    assert image is not None
    wanted = {"model": "m", "prompt": "a cat", "size": "256x256", "response_format": "b64_json"}
    assert body(items.media(image, Task.IMAGE, "m")) == wanted
    assert form('{"name": "x"}') is None
    assert form("say hi") is None


def test_a_transcription_is_a_form_with_the_sound_as_its_file() -> None:
    request = items.media({"audio": "data:audio/mp3;base64,aGVsbG8=", "language": "en"}, Task.TRANSCRIPTION, "m")
    assert b'name="model"\r\n\r\nm\r\n' in request.body
    assert b'name="language"\r\n\r\nen\r\n' in request.body
    assert b'filename="audio.mp3"' in request.body
    assert b"\r\n\r\nhello\r\n--" in request.body
    assert request.headers["Content-Type"].startswith("multipart/form-data; boundary=")


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({"voice": "x"}, Task.SPEECH),
        ({"audio": "x"}, Task.IMAGE),
        ({"input": "x"}, Task.TRANSCRIPTION),
        ({"audio": "!"}, Task.TRANSCRIPTION),
    ],
)
def test_a_request_that_lacks_what_its_task_needs_is_refused(fields: dict[str, Any], task: Task) -> None:
    with pytest.raises(InvalidInput):
        items.media(fields, task, "m")
