"""Anthropic's own SDK reads what the fake sends, so that the fake is held to something real."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anthropic
import pytest
from tests.vendors.anthropic import FAKE, MODEL, REQUEST_ID

from byzerllm.wire.events import Event, Finish, Reasoning, Text, Tokens, ToolCall

SCRIPT: list[Event] = [
    Reasoning("I look "),
    Reasoning("it up.", signature="c2ln"),
    Text("Jetzt "),
    Text("schön 🌤"),
    ToolCall(0, "toolu_1", "weather", '{"city":'),
    ToolCall(0, arguments=' "Zürich"}'),
    ToolCall(1, "toolu_2", "now", ""),
    Tokens(50, 20, cached=30, reasoning=7),
    Finish("tool_calls"),
]


@contextmanager
def serving(status: int, content_type: str, body: bytes, headers: dict[str, str]) -> Iterator[str]:
    """The address of a server that answers every POST to /v1/messages so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            found = self.path == "/v1/messages"
            self.send_response(status if found else 404)
            for name, value in {**headers, "content-type": content_type, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def client(status: int, content_type: str, body: bytes, headers: dict[str, str]) -> Iterator[anthropic.Anthropic]:
    with (
        serving(status, content_type, body, headers) as url,
        anthropic.Anthropic(api_key="sk-ant-test", base_url=url, max_retries=0) as sdk,
    ):
        yield sdk


def check(message: anthropic.types.Message) -> None:
    thinking, text, weather, now = message.content
    assert isinstance(thinking, anthropic.types.ThinkingBlock)
    assert (thinking.thinking, thinking.signature) == ("I look it up.", "c2ln")
    assert isinstance(text, anthropic.types.TextBlock)
    assert text.text == "Jetzt schön 🌤"
    assert isinstance(weather, anthropic.types.ToolUseBlock)
    assert (weather.id, weather.name, weather.input) == ("toolu_1", "weather", {"city": "Zürich"})
    assert isinstance(now, anthropic.types.ToolUseBlock)
    assert now.input == {}
    assert message.stop_reason == "tool_use"
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (20, 30, 20)
    assert usage.output_tokens_details is not None
    assert usage.output_tokens_details.thinking_tokens == 7


def test_the_sdk_reads_the_stream() -> None:
    with (
        client(200, FAKE.stream_type, FAKE.stream(SCRIPT), {}) as sdk,
        sdk.messages.stream(model=MODEL, max_tokens=10, messages=[{"role": "user", "content": "?"}]) as stream,
    ):
        check(stream.get_final_message())


def test_the_sdk_reads_the_answer() -> None:
    with client(200, "application/json", FAKE.answer(SCRIPT), {}) as sdk:
        check(sdk.messages.create(model=MODEL, max_tokens=10, messages=[{"role": "user", "content": "?"}]))


def test_the_sdk_reads_a_refusal() -> None:
    script: list[Event] = [Text("No"), Tokens(3, 1), Finish("content_filter")]
    with client(200, "application/json", FAKE.answer(script), {}) as sdk:
        message = sdk.messages.create(model=MODEL, max_tokens=10, messages=[{"role": "user", "content": "?"}])
    assert message.stop_reason == "refusal"
    assert message.stop_details is not None
    assert message.stop_details.type == "refusal"


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (401, "authentication_error", anthropic.AuthenticationError),
        (429, "rate_limit_error", anthropic.RateLimitError),
        (529, "overloaded_error", anthropic.APIStatusError),
    ],
)
def test_the_sdk_reads_an_error(status: int, code: str, error: type[anthropic.APIStatusError]) -> None:
    sent = FAKE.error(status, code, "in its words")
    with client(status, "application/json", sent.body, sent.headers) as sdk, pytest.raises(error) as found:
        sdk.messages.create(model=MODEL, max_tokens=10, messages=[{"role": "user", "content": "?"}])
    assert found.value.status_code == status
    assert found.value.type == code
    assert found.value.request_id == REQUEST_ID
    assert "in its words" in str(found.value)


def test_the_sdk_reads_an_error_in_the_stream() -> None:
    assert FAKE.error_in_stream is not None
    body = FAKE.error_in_stream([Text("Hel")], "overloaded_error", "Overloaded")
    with client(200, FAKE.stream_type, body, {}) as sdk, pytest.raises(anthropic.APIStatusError) as found:
        for _ in sdk.messages.create(
            model=MODEL, max_tokens=10, messages=[{"role": "user", "content": "?"}], stream=True
        ):
            pass
    assert found.value.type == "overloaded_error"
