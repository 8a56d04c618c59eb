"""Streams whose vendor is asked for their tokens: they are counted, and the client sees what it would have seen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes import FakeUpstream, Reply
from tests.gateway import delta, deploy, detail, post, wait_free

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Byzer

TOLD = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
DONE = b"data: [DONE]\n\n"
UNASKED = (delta("one"), delta('say "usage":null'), delta("", "stop"))


def stream_of(*events: dict[str, Any], end: bytes = DONE) -> bytes:
    lines = (json.dumps(event, separators=(",", ":")).encode() for event in events)
    return b"".join(b"data: %b\n\n" % line for line in lines) + end


PLAIN = stream_of(*UNASKED)
ASKED = stream_of(*({**event, "usage": None} for event in UNASKED), {**delta(""), "choices": [], "usage": TOLD})


@pytest.fixture(scope="module")
def vendor() -> Iterator[FakeUpstream]:
    """Answers as OpenAI documents it, in pieces of some bytes."""
    with FakeUpstream() as upstream:

        def answer(request: Any) -> Reply:
            options = request.json().get("stream_options") or {}
            body = ASKED if options.get("include_usage") else PLAIN
            pieces = [body[at : at + 50] for at in range(0, len(body), 50)]
            return Reply(pieces, headers={"content-type": "text/event-stream"}, framing="chunked")

        upstream.default = answer
        yield upstream


@pytest.fixture(scope="module")
def server(make_byzer: Callable[..., Byzer], vendor: FakeUpstream) -> Byzer:
    byzer = make_byzer()
    byzer.run("server", "start")
    deploy(byzer, "asked", vendor, stream_usage="true")
    deploy(byzer, "unasked", vendor)
    deploy(byzer, "translated", vendor, {"pretrained_model_type": "saas/sparkdesk"}, stream_usage="true")
    return byzer


def tokens(server: Byzer, model: str) -> tuple[int, int]:
    wait_free(server, model)
    counted = detail(server, model)["tokens"]
    return counted["prompt"], counted["completion"]


def test_the_client_sees_what_it_would_have_seen_and_the_tokens_are_counted(server: Byzer) -> None:
    assert post(server, "unasked", stream=True).body == PLAIN
    assert tokens(server, "unasked") == (0, 0)
    before = tokens(server, "asked")
    assert post(server, "asked", stream=True).body == PLAIN
    assert post(server, "asked", stream=True, stream_options={"include_usage": False}).body == PLAIN
    after = tokens(server, "asked")
    assert (after[0] - before[0], after[1] - before[1]) == (22, 14)


def test_who_asks_sees_the_answer(server: Byzer) -> None:
    for model in ("asked", "unasked"):
        before = tokens(server, model)
        assert post(server, model, stream=True, stream_options={"include_usage": True}).body == ASKED
        assert tokens(server, model)[0] - before[0] == 11


def test_a_translated_stream_is_counted_too(server: Byzer, vendor: FakeUpstream) -> None:
    answer = post(server, "translated", stream=True)
    assert b"usage" not in answer.body.replace(b'\\"usage', b"")
    assert vendor.requests[-1].json()["stream_options"] == {"include_usage": True}
    assert tokens(server, "translated") == (11, 7)


@pytest.mark.parametrize(
    "end",
    [b"", b"data: [DONE]", b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":1}}'],
    ids=["", "done", "told"],
)
def test_a_stream_without_a_last_empty_line_is_whole(server: Byzer, vendor: FakeUpstream, end: bytes) -> None:
    body = stream_of(*UNASKED, end=end)
    vendor.script(Reply([body], headers={"content-type": "text/event-stream"}, framing="chunked"))
    shown = stream_of(*UNASKED, end=b"" if b"usage" in end else end)
    assert post(server, "asked", stream=True).body == shown
