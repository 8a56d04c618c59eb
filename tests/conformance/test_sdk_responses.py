"""What the fake of the Responses API sends, read by the published SDK: the fake is held to something real."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall, ResponseOutputMessage, ResponseReasoningItem
from tests.fakes import FakeUpstream, Reply
from tests.vendors.responses import FAKE, MODEL, REQUEST_ID

from byzerllm.wire.events import Event, Finish, Reasoning, Text, Tokens, ToolCall

SCRIPT: list[Event] = [
    Reasoning("I look "),
    Reasoning("it up.", "gAAAAB"),
    Text("Jetzt "),
    Text("schön 🌤"),
    ToolCall(0, "call_1", "weather", '{"city":'),
    ToolCall(0, arguments=' "Zürich"}'),
    ToolCall(1, "call_2", "now", "{}"),
    Tokens(50, 20, cached=30, reasoning=7),
    Finish("tool_calls"),
]


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    fake = FakeUpstream()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def sdk(upstream: FakeUpstream) -> Iterator[openai.OpenAI]:
    url = f"http://127.0.0.1:{upstream.port}/v1"
    with openai.OpenAI(api_key="sk-test", base_url=url, max_retries=0) as client:
        yield client


def check(response: Response) -> None:
    reasoning, message, weather, now = response.output
    assert isinstance(reasoning, ResponseReasoningItem)
    assert (reasoning.summary[0].text, reasoning.encrypted_content) == ("I look it up.", "gAAAAB")
    assert isinstance(message, ResponseOutputMessage)
    assert response.output_text == "Jetzt schön 🌤"
    assert isinstance(weather, ResponseFunctionToolCall)
    assert (weather.call_id, weather.name, weather.arguments) == ("call_1", "weather", '{"city": "Zürich"}')
    assert isinstance(now, ResponseFunctionToolCall)
    assert now.arguments == "{}"
    assert (response.status, response.model) == ("completed", MODEL)
    usage = response.usage
    assert usage is not None
    assert (usage.input_tokens, usage.input_tokens_details.cached_tokens) == (50, 30)
    assert (usage.output_tokens, usage.output_tokens_details.reasoning_tokens) == (20, 7)
    assert Response.model_validate(response.to_dict())  # strictly, which the client itself is not


def test_the_sdk_reads_the_stream(upstream: FakeUpstream, sdk: openai.OpenAI) -> None:
    upstream.script(Reply([FAKE.stream(SCRIPT)], headers={"content-type": FAKE.stream_type}))
    with sdk.responses.stream(model=MODEL, input="?") as stream:
        events = list(stream)
        check(stream.get_final_response())
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Jetzt schön 🌤"


def test_the_sdk_reads_the_answer(upstream: FakeUpstream, sdk: openai.OpenAI) -> None:
    upstream.script(Reply([FAKE.answer(SCRIPT)]))
    check(sdk.responses.create(model=MODEL, input="?"))


def test_the_sdk_reads_why_it_is_not_whole(upstream: FakeUpstream, sdk: openai.OpenAI) -> None:
    upstream.script(Reply([FAKE.answer([Text("No"), Tokens(3, 1), Finish("length")])]))
    response = sdk.responses.create(model=MODEL, input="?")
    assert response.incomplete_details is not None
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_the_sdk_reads_errors(upstream: FakeUpstream, sdk: openai.OpenAI) -> None:
    sent = FAKE.error(429, "rate_limit_exceeded", "in its words")
    upstream.script(Reply([sent.body], sent.status, sent.headers))
    with pytest.raises(openai.RateLimitError, match="in its words") as refused:
        sdk.responses.create(model=MODEL, input="?")
    assert (refused.value.code, refused.value.request_id) == ("rate_limit_exceeded", REQUEST_ID)
    assert FAKE.error_in_answer is not None
    upstream.script(Reply([FAKE.error_in_answer("server_error", "in its words")]))
    failed = sdk.responses.create(model=MODEL, input="?")
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.error.message) == ("failed", "server_error", "in its words")


def test_the_sdk_reads_an_error_in_the_stream(upstream: FakeUpstream, sdk: openai.OpenAI) -> None:
    assert FAKE.error_in_stream is not None
    body = FAKE.error_in_stream([Text("Hel")], "server_error", "in its words")
    upstream.script(Reply([body], headers={"content-type": FAKE.stream_type}))
    last = list(sdk.responses.create(model=MODEL, input="?", stream=True))[-1]
    assert last.type == "error"
    assert (last.code, last.message) == ("server_error", "in its words")
