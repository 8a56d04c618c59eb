"""AWS's own SDK: it reads what the fake sends, accepts what we ask for, and signs and frames as we do."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.eventstream import EventStreamBuffer
from botocore.exceptions import ClientError, EventStreamError
from botocore.session import get_session
from botocore.validate import ParamValidator
from tests.vendors.bedrock import FAKE, MODEL, REQUEST_ID

from byzerllm.control.upstreams import saas_upstreams
from byzerllm.providers.parse import SaasOptions, parse
from byzerllm.routing.worker import Translated
from byzerllm.spec import DeploymentSpec
from byzerllm.wire.base import Task, decode_request
from byzerllm.wire.bedrock import BedrockConverse
from byzerllm.wire.events import Event, Finish, Reasoning, Text, Tokens, ToolCall
from byzerllm.wire.eventstream import FrameReader

SCRIPT: list[Event] = [
    Reasoning("I look "),
    Reasoning("it up.", signature="c2ln"),
    Text("Jetzt "),
    Text("schön 🌤"),
    ToolCall(0, "tooluse_1", "weather", '{"city":'),
    ToolCall(0, arguments=' "Zürich"}'),
    ToolCall(1, "tooluse_2", "now", ""),
    Tokens(50, 20, cached=30),
    Finish("tool_calls"),
]
USAGE = {
    "inputTokens": 20,
    "outputTokens": 20,
    "totalTokens": 70,
    "cacheReadInputTokens": 30,
    "cacheWriteInputTokens": 0,
}
KEYS = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "secret/example+key"}
REQUEST: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "weather?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "reasoning_signature": "c2ln",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ],
    "max_tokens": 64,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 4,
    "stop": ["END"],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "strict": True}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    "reasoning_effort": "low",
    "serviceTier": {"type": "flex"},
}


@contextmanager
def client(status: int, content_type: str, body: bytes, headers: dict[str, str]) -> Iterator[Any]:
    """The SDK's client of a server that answers every POST below ``/model`` so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status if self.path.startswith("/model/anthropic.claude-3-haiku") else 404)
            for name, value in {**headers, "Content-Type": content_type, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    made = get_session().create_client(
        "bedrock-runtime",
        region_name="us-east-1",
        endpoint_url=f"http://127.0.0.1:{server.server_port}",
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
        **KEYS,
    )
    try:
        yield made
    finally:
        made.close()
        server.shutdown()
        server.server_close()
        thread.join()


def ask(made: Any, *, stream: bool) -> Any:
    call = made.converse_stream if stream else made.converse
    return call(modelId=MODEL, messages=[{"role": "user", "content": [{"text": "hi"}]}])


def test_the_sdk_reads_a_whole_answer() -> None:
    with client(200, "application/json", FAKE.answer(SCRIPT), {}) as made:
        answer = ask(made, stream=False)
    assert answer["output"]["message"]["content"] == [
        {"reasoningContent": {"reasoningText": {"text": "I look it up.", "signature": "c2ln"}}},
        {"text": "Jetzt schön 🌤"},
        {"toolUse": {"toolUseId": "tooluse_1", "name": "weather", "input": {"city": "Zürich"}}},
        {"toolUse": {"toolUseId": "tooluse_2", "name": "now", "input": {}}},
    ]
    assert (answer["stopReason"], answer["usage"]) == ("tool_use", USAGE)


def test_the_sdk_reads_a_stream() -> None:
    with client(200, FAKE.stream_type, FAKE.stream(SCRIPT), {}) as made:
        events = list(ask(made, stream=True)["stream"])
    assert [next(iter(e)) for e in events[:2]] == ["messageStart", "contentBlockDelta"]
    deltas = [e["contentBlockDelta"]["delta"] for e in events if "contentBlockDelta" in e]
    assert "".join(d.get("text", "") for d in deltas) == "Jetzt schön 🌤"
    assert [d["reasoningContent"] for d in deltas if "reasoningContent" in d] == [
        {"text": "I look "},
        {"text": "it up."},
        {"signature": "c2ln"},
    ]
    assert "".join(d["toolUse"]["input"] for d in deltas if "toolUse" in d) == '{"city": "Zürich"}'
    starts = [e["contentBlockStart"]["start"]["toolUse"] for e in events if "contentBlockStart" in e]
    assert starts == [{"toolUseId": "tooluse_1", "name": "weather"}, {"toolUseId": "tooluse_2", "name": "now"}]
    assert events[-2]["messageStop"] == {"stopReason": "tool_use"}
    assert events[-1]["metadata"]["usage"] == USAGE


def test_the_sdk_reads_an_error() -> None:
    sent = FAKE.error(429, "ThrottlingException", "Too many requests")
    with (
        client(sent.status, "application/json", sent.body, sent.headers) as made,
        pytest.raises(ClientError) as refused,
    ):
        ask(made, stream=False)
    assert refused.value.response["Error"] == {"Message": "Too many requests", "Code": "ThrottlingException"}
    assert refused.value.response["ResponseMetadata"]["RequestId"] == REQUEST_ID


def test_the_sdk_reads_an_error_inside_a_stream() -> None:
    assert FAKE.error_in_stream is not None
    body = FAKE.error_in_stream([Text("so far")], "throttlingException", "slow down")
    with client(200, FAKE.stream_type, body, {}) as made:
        events = iter(ask(made, stream=True)["stream"])
        with pytest.raises(EventStreamError) as broken:
            list(events)
    assert broken.value.response["Error"] == {"Message": "slow down", "Code": "throttlingException"}


def test_the_sdk_reads_the_same_frames() -> None:
    data = FAKE.stream(SCRIPT)
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    theirs = [(frame.headers, frame.payload) for frame in buffer]
    assert [(frame.headers, frame.payload) for frame in FrameReader().feed(data)] == theirs


@pytest.mark.parametrize("operation", ["Converse", "ConverseStream"])
def test_the_sdk_would_send_the_same_request(operation: str) -> None:
    fields = {**REQUEST, "stream": operation == "ConverseStream"}
    outgoing = BedrockConverse().request(decode_request(Task.CHAT, json.dumps(fields).encode()), options().vendor())
    shape = get_session().get_service_model("bedrock-runtime").operation_model(operation).input_shape
    body = json.loads(outgoing.body)
    assert set(body) <= set(shape.members)
    report = ParamValidator().validate({"modelId": MODEL, **body}, shape)
    assert not report.has_errors(), report.generate_report()


def options(**params: str) -> SaasOptions:
    given = {
        "region_name": "eu-west-1",
        "aws_access_key": KEYS["aws_access_key_id"],
        "aws_secret_key": KEYS["aws_secret_access_key"],
        "model": MODEL,
        **params,
    }
    named = {f"saas.{name}": value for name, value in given.items()}
    return parse(DeploymentSpec(name="m", pretrained_model_type="saas/aws_bedrock", infer_params=named), {})


@pytest.mark.parametrize("model", [MODEL, "arn:aws:bedrock:eu-west-1:1:inference-profile/eu.x-v1:0"])
@pytest.mark.parametrize("token", ["", "token/with+signs="])
@pytest.mark.parametrize("base_url", ["", "http://127.0.0.1:8000/pre~fix/v_1"])
def test_the_sdk_would_sign_the_same(model: str, token: str, base_url: str) -> None:
    given = options(model=model, aws_session_token=token, **({"base_url": base_url} if base_url else {}))
    [upstream] = saas_upstreams(given, given.base_url)
    assert isinstance(upstream, Translated)
    outgoing = upstream.wire.request(decode_request(Task.CHAT, json.dumps(REQUEST).encode()), upstream.vendor)
    head, _, body = asyncio.run(upstream.request(outgoing)).partition(b"\r\n\r\n")
    line, *rest = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (text.partition(": ") for text in rest)}
    path = line.split()[1]

    signed = {n: v for n, v in headers.items() if n in ("content-type", "host", "x-amz-date", "x-amz-security-token")}
    theirs = AWSRequest("POST", f"{'http' if base_url else 'https'}://{headers['host']}{path}", signed, body)
    theirs.context["timestamp"] = headers["x-amz-date"]
    auth = SigV4Auth(
        Credentials(given.params["aws_access_key"], given.params["aws_secret_key"]), "bedrock", "eu-west-1"
    )
    text = auth.string_to_sign(theirs, auth.canonical_request(theirs))
    assert headers["authorization"].endswith(f"Signature={auth.signature(text, theirs)}")
    assert ("x-amz-security-token" in headers) is bool(token)
