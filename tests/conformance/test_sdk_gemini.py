"""Google's own SDK reads what the fake sends, so that the fake is held to something real, and asks as we do."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.vendors.gemini import FAKE, MODEL, error_body

from byzerllm.providers.registry import provider
from byzerllm.wire import translator
from byzerllm.wire.base import Task, Vendor, decode_request
from byzerllm.wire.events import Event, Finish, Reasoning, Text, Tokens, ToolCall

genai = pytest.importorskip("google.genai", reason="google-genai needs Python 3.11")
errors, types = pytest.importorskip("google.genai.errors"), pytest.importorskip("google.genai.types")

SCRIPT: list[Event] = [
    Reasoning("I look it up.", signature="c2ln"),
    Text("Jetzt "),
    Text("schön 🌤"),
    ToolCall(0, "c1", "weather", '{"city":', signature="Y2FsbA=="),
    ToolCall(0, arguments=' "Zürich"}'),
    ToolCall(1, "c2", "now", ""),
    Tokens(50, 20, cached=30, reasoning=7),
    Finish("tool_calls"),
]
PIXEL = b"\x89PNG\r\n\x1a\n"


@dataclass
class Served:
    """What one server answers, and what it was asked."""

    url: str = ""
    asked: list[tuple[str, str, Any]] = field(default_factory=list)  # path, key, body


def camel(value: Any) -> Any:
    """With the names as the documents have them: the SDK writes some with underscores, which the API takes too."""
    if isinstance(value, list):
        return [camel(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {re.sub("_([a-z])", lambda found: found[1].upper(), name): camel(each) for name, each in value.items()}


@contextmanager
def serving(status: int, content_type: str, body: bytes) -> Iterator[Served]:
    served = Served()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = camel(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            served.asked.append((self.path, self.headers["x-goog-api-key"], asked))
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
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def client(status: int, content_type: str, body: bytes) -> Iterator[tuple[Any, Served]]:
    with serving(status, content_type, body) as served:
        sdk = genai.Client(
            api_key="AIza-test", http_options=types.HttpOptions(base_url=served.url, api_version="v1beta")
        )
        try:
            yield sdk, served
        finally:
            sdk.close()


def ours(task: Task, model: str = MODEL, **fields: Any) -> tuple[str, Any]:
    """Path and body that we send for a client's request."""
    table = provider("gemini")
    vendor = Vendor(model, table.title, {}, table.capabilities, table.models)
    request = decode_request(task, json.dumps({"model": "m", **fields}).encode())
    outgoing = translator("gemini").request(request, vendor)
    return "/v1beta" + outgoing.path, json.loads(outgoing.body)


# Answers


def check(answers: list[Any]) -> None:
    parts = [
        part
        for answer in answers
        for candidate in answer.candidates or []
        for part in (candidate.content and candidate.content.parts) or []
    ]
    thought = next(p for p in parts if p.thought)
    assert (thought.text, thought.thought_signature) == ("I look it up.", b"sig")
    assert "".join(p.text or "" for p in parts if not p.thought) == "Jetzt schön 🌤"
    calls = [(p.function_call, p.thought_signature) for p in parts if p.function_call]
    assert [(c.id, c.name, c.args, s) for c, s in calls] == [
        ("c1", "weather", {"city": "Zürich"}, b"call"),
        ("c2", "now", {}, None),
    ]
    last = answers[-1]
    assert last.candidates
    assert last.candidates[0].finish_reason is types.FinishReason.STOP
    usage = last.usage_metadata
    assert usage is not None
    assert (usage.prompt_token_count, usage.candidates_token_count, usage.thoughts_token_count) == (50, 13, 7)
    assert usage.cached_content_token_count == 30


def test_the_sdk_reads_the_stream() -> None:
    with client(200, FAKE.stream_type, FAKE.stream(SCRIPT)) as (sdk, served):
        check(list(sdk.models.generate_content_stream(model=MODEL, contents="?")))
    messages = [{"role": "user", "content": "?"}]
    path, body = ours(Task.CHAT, messages=messages, stream=True)
    assert served.asked == [(path, "AIza-test", body)]


def test_the_sdk_reads_the_answer() -> None:
    with client(200, "application/json", FAKE.answer(SCRIPT)) as (sdk, _):
        check([sdk.models.generate_content(model=MODEL, contents="?")])


@pytest.mark.parametrize(("status", "code"), [(401, "UNAUTHENTICATED"), (429, "RESOURCE_EXHAUSTED")])
def test_the_sdk_reads_an_error(status: int, code: str) -> None:
    sent = FAKE.error(status, code, "in its words")
    with client(status, "application/json", sent.body) as (sdk, _), pytest.raises(errors.ClientError) as found:
        sdk.models.generate_content(model=MODEL, contents="?")
    assert (found.value.code, found.value.status, found.value.message) == (status, code, "in its words")


def test_the_sdk_reads_an_error_in_an_array() -> None:
    body = json.dumps([error_body(429, "RESOURCE_EXHAUSTED", "in its words")]).encode()
    with client(429, "application/json", body) as (sdk, _), pytest.raises(errors.ClientError) as found:
        list(sdk.models.generate_content_stream(model=MODEL, contents="?"))
    assert "in its words" in str(found.value)


def test_the_sdk_reads_an_error_in_the_stream() -> None:
    assert FAKE.error_in_stream is not None
    body = FAKE.error_in_stream([Text("Hel")], "UNAVAILABLE", "Overloaded")
    with client(200, FAKE.stream_type, body) as (sdk, _), pytest.raises(errors.ServerError) as found:
        list(sdk.models.generate_content_stream(model=MODEL, contents="?"))
    assert (found.value.code, found.value.status, found.value.message) == (503, "UNAVAILABLE", "Overloaded")


# Requests: what the SDK sends for the same wishes


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
IMAGE = "https://x.y/a.png"
ASKED = types.FunctionCall(id="c1", name="weather", args={"city": "Ulm"})
TOLD = types.FunctionResponse(id="c1", name="weather", response={"result": "sun"})
CONTENTS: list[Any] = [
    types.UserContent([
        types.Part(text="?"),
        types.Part.from_bytes(data=PIXEL, mime_type="image/png"),
        types.Part.from_uri(file_uri=IMAGE),
    ]),
    types.ModelContent([
        types.Part(text="hm", thought=True),
        types.Part(text="Now", thought_signature=b"sig"),
        types.Part(function_call=ASKED, thought_signature=b"call"),
    ]),
    types.UserContent([types.Part(function_response=TOLD)]),
]  # fmt: skip
CONFIG = types.GenerateContentConfig(
    system_instruction=types.Content(parts=[types.Part(text="brief")]),
    temperature=0.2, top_p=0.9, top_k=40, max_output_tokens=256, stop_sequences=["END"], seed=1,
    presence_penalty=0.5, frequency_penalty=0.25, response_mime_type="application/json",
    response_json_schema=SCHEMA,
    thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_level=types.ThinkingLevel.LOW),
    tools=[types.Tool(function_declarations=[
        types.FunctionDeclaration(name="weather", description="d", parameters_json_schema=SCHEMA),
    ])],
    tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(
        mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["weather"],
    )),
    safety_settings=[types.SafetySetting(
        category=types.HarmCategory.HARM_CATEGORY_HARASSMENT,
        threshold=types.HarmBlockThreshold.BLOCK_NONE,
    )],
    service_tier=types.ServiceTier.FLEX,
)  # fmt: skip
FUNCTION = {"name": "weather", "description": "d", "parameters": SCHEMA}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Ulm"}'}}
SAME: dict[str, Any] = dict(
    messages=[
        {"role": "system", "content": "brief"},
        {"role": "user", "content": [
            {"type": "text", "text": "?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
            {"type": "image_url", "image_url": {"url": IMAGE}},
        ]},
        {"role": "assistant", "content": "Now", "reasoning_content": "hm", "reasoning_signature": "c2ln",
         "tool_calls": [{**CALL, "signature": "Y2FsbA=="}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
    ],
    temperature=0.2, top_p=0.9, top_k=40, max_tokens=256, stop=["END"], seed=1, presence_penalty=0.5,
    frequency_penalty=0.25, reasoning_effort="low",
    response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    tools=[{"type": "function", "function": FUNCTION}],
    tool_choice={"type": "function", "function": {"name": "weather"}},
    safetySettings=[{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
    serviceTier="flex",
)  # fmt: skip


def test_the_sdk_asks_as_we_do() -> None:
    with client(200, "application/json", FAKE.answer(SCRIPT)) as (sdk, served):
        sdk.models.generate_content(model=MODEL, contents=CONTENTS, config=CONFIG)
    path, body = ours(Task.CHAT, **SAME)
    assert served.asked == [(path, "AIza-test", body)]


def test_the_sdk_asks_for_embeddings_as_we_do() -> None:
    model = "gemini-embedding-001"
    body = b'{"embeddings":[{"values":[0.5]},{"values":[1.5]}]}'
    texts: list[Any] = ["a", "b"]
    with client(200, "application/json", body) as (sdk, served):
        config = types.EmbedContentConfig(output_dimensionality=8, task_type="RETRIEVAL_QUERY")
        found = sdk.models.embed_content(model=model, contents=texts, config=config)
    assert [e.values for e in found.embeddings or []] == [[0.5], [1.5]]
    path, asked = ours(Task.EMBEDDING, model, input=["a", "b"], dimensions=8, taskType="RETRIEVAL_QUERY")
    for request in asked["requests"]:
        request["content"]["role"] = "user"  # it says so, the documents do not
    assert served.asked == [(path, "AIza-test", asked)]
