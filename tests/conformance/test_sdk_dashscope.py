"""DashScope's own SDK reads what the fake sends, so that the fake is held to something real, and asks as we do."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dashscope
import pytest
from tests.vendors.dashscope import FAKE, MODEL, REQUEST_ID, answer, error_in_stream, stream

from byzerllm.providers.registry import provider
from byzerllm.wire import translator
from byzerllm.wire.base import Task, Vendor, decode_request
from byzerllm.wire.events import Event, Finish, Reasoning, Text, Tokens, ToolCall

SCRIPT: list[Event] = [
    Reasoning("I look "),
    Reasoning("it up."),
    Text("Jetzt "),
    Text("schön 🌤"),
    ToolCall(0, "c1", "weather", '{"city":'),
    ToolCall(0, arguments=' "Zürich"}'),
    ToolCall(1, "c2", "now", "{}"),
    Tokens(50, 20, cached=30, reasoning=7),
    Finish("tool_calls"),
]
HI = [{"role": "user", "content": "Hi"}]
SEES = "qwen3-vl-plus"


@dataclass
class Served:
    """What one server answers, and what it was asked."""

    url: str = ""
    asked: list[tuple[str, Any]] = field(default_factory=list)  # path and body
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serving(status: int, content_type: str, body: bytes) -> Iterator[Served]:
    served = Served()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            served.asked.append((self.path, asked))
            served.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/api/v1"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def generate(served: Served, **more: Any) -> Any:
    given = {"model": MODEL, "messages": HI, "result_format": "message", **more}
    return dashscope.Generation.call(api_key="sk-test", base_address=served.url, **given)


def see(served: Served, **more: Any) -> Any:
    given = {"model": SEES, "messages": [{"role": "user", "content": [{"text": "Hi"}]}], **more}
    return dashscope.MultiModalConversation.call(api_key="sk-test", base_address=served.url, **given)


def ours(task: Task, model: str = MODEL, **fields: Any) -> tuple[str, Any, dict[str, str]]:
    """Path, body and headers that we send for a client's request."""
    table = provider("qianwen")
    vendor = Vendor(model, table.title, {}, table.capabilities, table.models)
    request = decode_request(task, json.dumps({"model": "m", **fields}).encode())
    outgoing = translator("dashscope").request(request, vendor)
    return "/api/v1" + outgoing.path, json.loads(outgoing.body), dict(outgoing.headers)


# Answers


def check(answers: list[Any]) -> None:
    assert {a.status_code for a in answers} == {200}
    assert {a.request_id for a in answers} == {REQUEST_ID}
    messages = [a.output.choices[0].message for a in answers]
    assert "".join(m.get("reasoning_content") or "" for m in messages) == "I look it up."
    assert "".join(m.content for m in messages) == "Jetzt schön 🌤"
    arguments: dict[int, str] = {}
    for call in [c for m in messages for c in m.get("tool_calls") or []]:
        arguments[call["index"]] = arguments.get(call["index"], "") + call["function"]["arguments"]
    assert arguments == {0: '{"city": "Zürich"}', 1: "{}"}
    assert [a.output.choices[0].finish_reason for a in answers] == ["null"] * (len(answers) - 1) + ["tool_calls"]
    usage = answers[-1].usage
    assert (usage.input_tokens, usage.output_tokens) == (50, 20)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 30
    assert usage["output_tokens_details"]["reasoning_tokens"] == 7


def test_the_sdk_reads_the_stream() -> None:
    with serving(200, FAKE.stream_type, FAKE.stream(SCRIPT)) as served:
        check(list(generate(served, stream=True, incremental_output=True)))
    path, body, headers = ours(Task.CHAT, messages=HI, stream=True)
    assert served.asked == [(path, body)]
    assert {name: served.headers[0][name.lower()] for name in headers} == headers


def test_the_sdk_reads_the_answer() -> None:
    with serving(200, "application/json", FAKE.answer(SCRIPT)) as served:
        check([generate(served)])


def test_the_sdk_reads_the_multimodal_path() -> None:
    script: list[Event] = [Text("a "), Text("cat"), Tokens(9, 2), Finish("stop")]
    with serving(200, FAKE.stream_type, stream(script, multimodal=True)) as served:
        answers = list(see(served, stream=True, incremental_output=True))
    parts = [part for a in answers for part in a.output.choices[0].message.content]
    assert parts == [{"text": "a "}, {"text": "cat"}]
    with serving(200, "application/json", answer(script, multimodal=True)) as served:
        assert see(served).output.choices[0].message.content == [{"text": "a cat"}]
    path, _, _ = ours(Task.CHAT, SEES, messages=HI)
    assert served.asked[0][0] == path


@pytest.mark.parametrize(("status", "code"), [(401, "InvalidApiKey"), (429, "Throttling.RateQuota")])
def test_the_sdk_reads_an_error(status: int, code: str) -> None:
    sent = FAKE.error(status, code, "in its words")
    with serving(status, "application/json", sent.body) as served:
        found = generate(served)
    assert (found.status_code, found.code, found.message) == (status, code, "in its words")
    assert found.request_id == REQUEST_ID


def test_the_sdk_reads_an_error_in_the_stream() -> None:
    body = error_in_stream([Text("Hel")], "DataInspectionFailed", "in its words")
    with serving(200, FAKE.stream_type, body) as served:
        first, last = list(generate(served, stream=True, incremental_output=True))
    assert first.output.choices[0].message.content == "Hel"
    assert (last.status_code, last.code, last.message) == (400, "DataInspectionFailed", "in its words")


# Requests: what the SDK sends for the same wishes


def test_the_sdk_asks_as_we_do() -> None:
    function = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "c1", "type": "function", "index": 0, "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "brief"},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sun", "tool_call_id": "c1"},
    ]
    same: dict[str, Any] = {
        "messages": messages, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "max_tokens": 256, "seed": 1,
        "stop": ["END"], "presence_penalty": 0.5, "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}}, "parallel_tool_calls": True,
        "response_format": {"type": "json_object"}, "enable_search": True, "repetition_penalty": 1.1,
    }  # fmt: skip
    with serving(200, "application/json", FAKE.answer(SCRIPT)) as served:
        generate(served, incremental_output=True, enable_thinking=True, thinking_budget=1024, **same)
    path, body, _ = ours(Task.CHAT, reasoning_effort="low", **same)
    assert served.asked == [(path, body)]


def test_the_sdk_asks_for_embeddings_as_we_do() -> None:
    vectors = [{"text_index": 0, "embedding": [0.5]}, {"text_index": 1, "embedding": [1.5]}]
    body = json.dumps({"output": {"embeddings": vectors}, "usage": {"total_tokens": 4}, "request_id": "r"}).encode()
    model = "text-embedding-v4"
    with serving(200, "application/json", body) as served:
        found = dashscope.TextEmbedding.call(
            model, ["a", "b"], api_key="sk-test", base_address=served.url, dimension=64, text_type="query"
        )
    assert found.output["embeddings"] == vectors
    path, asked, _ = ours(Task.EMBEDDING, model, input=["a", "b"], dimensions=64, text_type="query")
    assert served.asked == [(path, asked)]
