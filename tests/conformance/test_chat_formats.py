"""Every translated wire format against its fake: what a vendor says in its format, a client hears in OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import APIError, APIStatusError, OpenAI
from tests.fakes import FakeUpstream, Reply
from tests.harness import Byzer
from tests.vendors import fakes
from tests.vendors.base import FakeVendor

from byzerllm.errors import UpstreamError
from byzerllm.wire import TRANSLATORS, translator
from byzerllm.wire.base import EmbeddingTranslator, Task
from byzerllm.wire.events import Event, Failure, Finish, Reasoning, Started, Text, Tokens, ToolCall
from byzerllm.wire.openai_events import Answer, StreamEncoder

FAKES = fakes()
EVERY = pytest.mark.parametrize("fake", FAKES, ids=[f.wire for f in FAKES])
HELLO: list[Event] = [Text("Hel"), Text("lo, 世"), Text("界! 🙂"), Tokens(7, 3), Finish("stop")]


def answer_of(events: Sequence[Event]) -> dict[str, Any]:
    """What a client that does not stream gets of these events."""
    answer = Answer("id", "model", 0)
    for event in events:
        answer.add(event)
    body: dict[str, Any] = json.loads(answer.body())
    del body["id"], body["model"]
    return body


def stream_of(fake: FakeVendor, data: bytes, cuts: Sequence[int] = ()) -> list[Event]:
    """The events of a stream whose bytes come in pieces cut at these places."""
    decoder = translator(fake.wire).stream()
    edges = [0, *sorted(c for c in cuts if 0 < c < len(data)), len(data)]
    events: list[Event] = []
    for start, end in pairwise(edges):
        events += decoder.feed(data[start:end])
    return events + decoder.close()


def merged(events: Sequence[Event]) -> list[Event]:
    """Neighbouring pieces joined, so that only what was said counts and not how it was cut."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, Started) or (isinstance(event, Text | Reasoning) and event == type(event)("")):
            continue
        if isinstance(event, Tokens):
            out = [e for e in out if not isinstance(e, Tokens)]
        if isinstance(event, Text) and isinstance(last, Text):
            out[-1] = Text(last.text + event.text)
        elif isinstance(event, Reasoning) and isinstance(last, Reasoning):
            out[-1] = Reasoning(last.text + event.text, last.signature or event.signature)
        elif isinstance(event, ToolCall) and isinstance(last, ToolCall) and last.index == event.index:
            out[-1] = ToolCall(
                last.index,
                last.id or event.id,
                last.name or event.name,
                last.arguments + event.arguments,
                last.signature or event.signature,
            )
        else:
            out.append(event)
    return sorted(out, key=lambda e: isinstance(e, Finish))  # some vendors count after they have ended


def scripts(fake: FakeVendor) -> st.SearchStrategy[list[Event]]:
    """Answers that the format can carry."""
    words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
    parts: list[st.SearchStrategy[list[Event]]] = [st.lists(words.map(Text), min_size=1, max_size=4)]
    if "reasoning" in fake.supports:
        parts.insert(0, st.lists(words.map(Reasoning), max_size=3))
    if "tools" in fake.supports:
        parts.append(st.lists(st.dictionaries(words, words, max_size=2), max_size=2).map(_calls))
    count = st.integers(0, 5000)
    tokens = st.tuples(count, count).map(lambda c: Tokens(*c)) if "usage" in fake.supports else st.just(Tokens(0, 0))
    return st.tuples(st.tuples(*parts), tokens).map(lambda p: _whole([e for part in p[0] for e in part], p[1]))


def _calls(arguments: list[dict[str, str]]) -> list[Event]:
    return [
        ToolCall(n, f"call_{n}", f"tool_{n}", json.dumps(a, ensure_ascii=False, separators=(",", ":")))
        for n, a in enumerate(arguments)
    ]


def _whole(events: list[Event], tokens: Tokens) -> list[Event]:
    called = any(isinstance(e, ToolCall) for e in events)
    return [*events, tokens, Finish("tool_calls" if called else "stop")]


def said(events: Sequence[Event], fake: FakeVendor) -> list[Any]:
    """What must survive the way through the format: ids of calls need not, arguments count as JSON."""
    out: list[Any] = []
    for event in merged(events):
        if isinstance(event, ToolCall):
            out.append(("call", event.index, event.name, json.loads(event.arguments or "{}")))
        elif isinstance(event, Tokens):
            out.append(("tokens", event.prompt, event.completion) if "usage" in fake.supports else ("tokens",))
        else:
            out.append(event)
    return [o for o in out if o != ("tokens",)]


def test_every_translated_format_has_a_fake() -> None:
    assert {f.wire for f in FAKES} == set(TRANSLATORS)


@EVERY
def test_any_cut_of_a_stream_gives_the_same_events(fake: FakeVendor) -> None:
    @settings(deadline=None, max_examples=40)
    @given(scripts(fake), st.lists(st.integers(1, 4000), max_size=20))
    def check(script: list[Event], cuts: list[int]) -> None:
        data = fake.stream(script)
        assert said(stream_of(fake, data, cuts), fake) == said(script, fake)

    check()


@EVERY
def test_byte_by_byte(fake: FakeVendor) -> None:
    data = fake.stream(HELLO)
    assert said(stream_of(fake, data, range(1, len(data))), fake) == said(HELLO, fake)


@EVERY
def test_a_whole_answer_says_the_same(fake: FakeVendor) -> None:
    @settings(deadline=None, max_examples=40)
    @given(scripts(fake))
    def check(script: list[Event]) -> None:
        assert said(translator(fake.wire).events(fake.answer(script)), fake) == said(script, fake)

    check()


@EVERY
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_why_it_ended(fake: FakeVendor, reason: Any) -> None:
    if reason == "length" and "length" not in fake.supports:
        return
    script: list[Event] = [Text("x"), Tokens(1, 1), Finish(reason)]
    for events in (stream_of(fake, fake.stream(script)), translator(fake.wire).events(fake.answer(script))):
        assert [e.reason for e in events if isinstance(e, Finish)] == [reason]


@EVERY
def test_a_stream_that_is_cut_is_not_taken_for_whole(fake: FakeVendor) -> None:
    if not fake.ends_by_itself:
        return
    data = fake.stream(HELLO)
    for end in range(1, len(data) * 2 // 3, 7):
        events = stream_of(fake, data[:end])
        assert isinstance(events[-1], Failure), (end, events)
        assert not any(isinstance(e, Finish) for e in events)


@EVERY
def test_an_error_keeps_the_vendors_words(fake: FakeVendor) -> None:
    sent = fake.error(429, "slow_down", "Please slow down.")
    error = translator(fake.wire).error(sent.status, sent.headers, sent.body)
    assert error.status == 429
    assert "Please slow down." in error.message


@EVERY
def test_an_error_inside_an_answer_is_an_error(fake: FakeVendor) -> None:
    if fake.error_in_answer is None:
        return
    events = translator(fake.wire).events(fake.error_in_answer("1", "It did not work."))
    failures = [e.error for e in events if isinstance(e, Failure)]
    assert len(failures) == 1
    assert failures[0].status >= 400
    assert "It did not work." in failures[0].message


@EVERY
def test_an_error_inside_a_stream_ends_it(fake: FakeVendor) -> None:
    if fake.error_in_stream is None:
        return
    events = stream_of(fake, fake.error_in_stream([Text("so far")], "1", "It did not work."))
    assert merged(events)[0] == Text("so far")
    assert isinstance(events[-1], Failure)
    assert "It did not work." in events[-1].error.message


@pytest.mark.parametrize("name", TRANSLATORS)
def test_a_format_that_has_embeddings_can_read_them(name: str) -> None:
    wire = translator(name)
    assert Task.CHAT in wire.tasks
    assert isinstance(wire, EmbeddingTranslator) is (Task.EMBEDDING in wire.tasks)


@EVERY
def test_the_openai_stream_is_one(fake: FakeVendor) -> None:
    encoder = StreamEncoder("id", "model", 0, include_usage=True)
    out = encoder.encode(stream_of(fake, fake.stream(HELLO))) + encoder.close()
    chunks = [msgspec.json.decode(line[6:]) for line in out.split(b"\n\n") if line and line != b"data: [DONE]"]
    assert out.endswith(b"data: [DONE]\n\n")
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "Hello, 世界! 🙂"
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"


# -- end to end: the published SDK, the real gateway, a socket with the fake behind it ---------------------------------


@pytest.fixture(scope="module")
def deployed(make_byzer: Callable[..., Byzer]) -> Any:
    """One server; ``deployed(fake)`` gives a client, the instance's name and the fake's socket."""
    byzer: Byzer = make_byzer()
    started: dict[str, FakeUpstream] = {}

    def get(fake: FakeVendor) -> tuple[OpenAI, str, FakeUpstream]:
        name = f"chat-{fake.wire}"
        if fake.wire not in started:
            upstream = started[fake.wire] = FakeUpstream()
            upstream.start()
            flags = [f.replace("{url}", f"http://127.0.0.1:{upstream.port}") for f in fake.deploy]
            byzer.run("deploy", "--model", name, "--no_verify", *flags)
        client = OpenAI(base_url=f"{byzer.url}/v1", api_key=byzer.token, max_retries=0)
        return client, name, started[fake.wire]

    yield get
    for upstream in started.values():
        upstream.stop()


def reply(fake: FakeVendor, body: bytes, *, stream: bool) -> Reply:
    kind = fake.stream_type if stream else "application/json"
    pieces = [body[i : i + 23] for i in range(0, len(body), 23)]
    return Reply(pieces, headers={"content-type": kind}, framing="chunked")


HTTP = pytest.mark.parametrize(
    "fake", [f for f in FAKES if f.stream_type], ids=[f.wire for f in FAKES if f.stream_type]
)
ASK: list[Any] = [{"role": "user", "content": "hello"}]


@HTTP
def test_the_sdk_hears_it(fake: FakeVendor, deployed: Any) -> None:
    client, name, upstream = deployed(fake)
    upstream.script(reply(fake, fake.answer(HELLO), stream=False))
    whole = client.chat.completions.create(model=name, messages=ASK)
    assert whole.choices[0].message.content == "Hello, 世界! 🙂"
    upstream.script(reply(fake, fake.stream(HELLO), stream=True))
    streamed = client.chat.completions.create(
        model=name, messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(streamed)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello, 世界! 🙂"
    if "usage" in fake.supports:
        assert chunks[-1].usage is not None
        assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (7, 3)
    for request in upstream.requests[-2:]:
        assert not fake.paths or request.path.startswith(fake.paths), request.path


@HTTP
def test_the_sdk_is_told_of_errors(fake: FakeVendor, deployed: Any) -> None:
    client, name, upstream = deployed(fake)
    sent = fake.error(401, "bad_key", "That key is wrong.")
    upstream.script(Reply([sent.body], sent.status, {"content-type": "application/json", **sent.headers}))
    with pytest.raises(APIStatusError, match=r"That key is wrong\.") as refused:
        client.chat.completions.create(model=name, messages=ASK)
    assert refused.value.status_code == 401
    if fake.error_in_stream is not None:
        body = fake.error_in_stream([Text("so far")], "1", "It did not work.")
        upstream.script(reply(fake, body, stream=True))
        with pytest.raises(APIError, match=r"It did not work\."):
            list(client.chat.completions.create(model=name, messages=ASK, stream=True))


def test_an_upstream_error_is_raised_by_an_answer() -> None:
    with pytest.raises(UpstreamError, match="gone"):
        answer_of([Text("x"), Failure(UpstreamError("gone"))])
