"""What asks a stream for its tokens, and keeps the answer from clients that did not ask."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.wire.base import Request, Task, decode_request
from byzerllm.wire.stream_usage import UsageFilter, asking

WORD = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"data: \\"choices\\":[]"}}],"usage":null}\n\n'
FIRST = b'data: {"id":"1","choices":[],"prompt_filter_results":[]}\n\n'
USAGE = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
SPACED = b'data: {"id": "1", "choices": [], "usage": {"prompt_tokens": 3}}\n\n'
DONE = b"data: [DONE]\n\n"


def request(task: Task = Task.CHAT, **fields: Any) -> Request:
    return decode_request(task, json.dumps({"model": "m", "stream": True, **fields}).encode())


def options_of(asked: Request | None) -> Any:
    assert asked is not None
    return json.loads(bytes(asked.fields["stream_options"]))


@pytest.mark.parametrize(
    ("given_options", "sent"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {}}, {"include_usage": True}),
        ({"stream_options": {"include_usage": False}}, {"include_usage": True}),
        ({"stream_options": {"include_usage": None, "more": [1]}}, {"include_usage": True, "more": [1]}),
    ],
)
@pytest.mark.parametrize("task", [Task.CHAT, Task.COMPLETION])
def test_a_stream_is_asked_for_its_tokens(task: Task, given_options: dict[str, Any], sent: dict[str, Any]) -> None:
    plain = request(task, temperature=0.5, **given_options)
    before = dict(plain.fields)
    asked = asking(plain)
    assert options_of(asked) == sent
    assert asked is not None
    assert (asked.task, asked.model, asked.stream) == (task, "m", True)
    assert {**asked.fields, "stream_options": None} == {**before, "stream_options": None}
    assert plain.fields == before


@pytest.mark.parametrize(
    "plain",
    [
        request(stream_options={"include_usage": True}),
        request(stream_options={"include_usage": "of the wrong kind"}),
        request(stream_options="of the wrong kind"),
        request(stream=False),
        request(Task.RESPONSES),
    ],
)
def test_others_are_left_as_they_are(plain: Request) -> None:
    assert asking(plain) is None


@pytest.mark.parametrize("told", [USAGE, SPACED])
@pytest.mark.parametrize("rest", [b"", DONE])
def test_the_event_with_the_tokens_is_hidden(told: bytes, rest: bytes) -> None:
    assert UsageFilter().feed(WORD + told + rest) == WORD + rest


@pytest.mark.parametrize("piece", [WORD, DONE, FIRST, b"", USAGE[9:]])
def test_all_else_is_shown(piece: bytes) -> None:
    assert UsageFilter().feed(piece) == piece


@given(st.lists(st.integers(0, len(FIRST + WORD * 2 + USAGE + DONE)), max_size=6).map(sorted))
def test_however_a_stream_is_cut_it_stays_whole(cuts: list[int]) -> None:
    stream = FIRST + WORD * 2 + USAGE + DONE
    hide = UsageFilter()
    shown = b"".join(hide.feed(stream[a:b]) for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True))
    assert shown in (stream, FIRST + WORD * 2 + DONE)
