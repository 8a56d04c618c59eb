"""What asks a stream for its tokens, and keeps the answer from clients that did not ask."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.wire.base import Request, Task, decode_request
from byzerllm.wire.stream_usage import LONGEST, UsageFilter, asking

WORD = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"data: \\"choices\\":[]"}}],"usage":null}\n\n'
PLAIN = WORD.replace(b',"usage":null', b"")
LATE = b'data: {"id":"1","choices":[{"index":0,"delta":{}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
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
    asked = asking(plain, {})
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
    assert asking(plain, {}) is None


def test_the_owners_options_are_kept_and_the_clients_go_before_them() -> None:
    owners = {"stream_options": msgspec.Raw(b'{"include_obfuscation":false}')}
    assert options_of(asking(request(), owners)) == {"include_obfuscation": False, "include_usage": True}
    assert options_of(asking(request(stream_options={"more": 1}), owners)) == {"more": 1, "include_usage": True}


def test_clients_whose_owner_asks_for_them_see_the_tokens() -> None:
    owners = {"stream_options": msgspec.Raw(b'{"include_usage":true}')}
    assert asking(request(), owners) is None
    assert options_of(asking(request(stream_options={"include_usage": False}), owners)) == {"include_usage": True}


def shown(*pieces: bytes) -> bytes:
    """What a client sees of a stream in these pieces."""
    hide = UsageFilter()
    return b"".join([*map(hide.feed, pieces), hide.close()])


@pytest.mark.parametrize("told", [USAGE, SPACED])
@pytest.mark.parametrize("rest", [b"", DONE])
def test_the_event_with_the_tokens_is_hidden(told: bytes, rest: bytes) -> None:
    assert shown(PLAIN + told + rest) == PLAIN + rest
    assert shown(FIRST + told + rest) == FIRST + rest


def test_what_the_question_adds_to_the_other_events_is_hidden() -> None:
    assert shown(WORD + WORD.replace(b'"usage":null', b' "usage": null, "more": 1')) == PLAIN + PLAIN.replace(
        b"}\n", b', "more": 1}\n'
    )


@pytest.mark.parametrize("piece", [PLAIN, DONE, FIRST, b"", LATE, b": comment\n\n", b"data: [DONE]", b"\n"])
def test_all_else_is_shown(piece: bytes) -> None:
    assert shown(piece) == piece


def test_a_whole_event_does_not_wait_for_the_next() -> None:
    hide = UsageFilter()
    assert [hide.feed(piece) for piece in (PLAIN, LATE + USAGE[:20], USAGE[20:])] == [PLAIN, LATE, b""]


def test_a_long_event_is_not_gathered() -> None:
    long = b"data: " + b"x" * LONGEST
    hide = UsageFilter()
    assert [hide.feed(long), hide.feed(b"x\n\n" + USAGE), hide.close()] == [long, b"x\n\n", b""]


STREAM = FIRST + WORD * 2 + LATE + USAGE + DONE


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("end", [b"", DONE, DONE.rstrip()])
@given(st.lists(st.integers(0, len(STREAM)), max_size=6).map(sorted))
def test_however_a_stream_is_cut_the_client_sees_the_same(line_end: bytes, end: bytes, cuts: list[int]) -> None:
    stream = (FIRST + WORD * 2 + LATE + USAGE + end).replace(b"\n", line_end)
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert shown(*pieces) == (FIRST + PLAIN * 2 + LATE + end).replace(b"\n", line_end)
