"""The published ``openai`` SDK against the real server: what its users rely on, to the byte and to the exception."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest
from tests.fakes import HANG, RESET, FakeUpstream, Reply, json_reply, raw_reply, sse_reply
from tests.gateway import ANSWER, MESSAGES, UPSTREAM_MODEL, delta, deploy, detail, wait_free

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Byzer

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Das Wetter in 北京 😀",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            "strict": True,
        },
    }
]
VISION: Any = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this? \u2028 \x00"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
        ],
    }
]


@pytest.fixture(scope="module")
def server(byzer: Byzer, vendor: FakeUpstream) -> Byzer:
    byzer.run("server", "start")
    deploy(byzer, "chat", vendor, {"num_workers": 40}, max_retries=0)  # many: no breaker in the way of the errors
    deploy(byzer, "embedder", vendor, model="text-embedding-3-small")
    return byzer


@pytest.fixture
def client(server: Byzer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "chat", "messages": MESSAGES, **more})


# -- what works -----------------------------------------------------------------------------------------------------


def test_chat(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert answer.choices[0].message.content == "hi"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 2)
    assert answer._request_id.startswith("req-")


def test_a_stream_arrives_event_by_event(client: openai.OpenAI, vendor: FakeUpstream) -> None:
    go = threading.Event()
    first, rest = (b"data: %s\n\n" % json.dumps(d).encode() for d in (delta("one"), delta("two", "stop")))
    headers = {"content-type": "text/event-stream"}
    vendor.script(Reply([first, go, rest, b"data: [DONE]\n\n"], headers=headers, framing="chunked"))
    stream = iter(ask(client, stream=True))
    assert next(stream).choices[0].delta.content == "one"
    go.set()  # the second is sent only now
    assert [c.choices[0].delta.content for c in stream] == ["two"]


def test_the_usage_of_a_stream_reaches_the_client_and_the_counters(
    server: Byzer, client: openai.OpenAI, vendor: FakeUpstream
) -> None:
    before = detail(server, "chat")["tokens"]
    last = {
        **delta("", None),
        "choices": [],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    }
    vendor.script(sse_reply(delta("a"), delta("", "stop"), last))
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.total_tokens == 18
    assert vendor.requests[-1].json()["stream_options"] == {"include_usage": True}
    wait_free(server, "chat")
    after = detail(server, "chat")["tokens"]
    assert (after["prompt"] - before["prompt"], after["completion"] - before["completion"]) == (11, 7)


def test_tools(client: openai.OpenAI, vendor: FakeUpstream) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "北京"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    vendor.script(json_reply({**ANSWER, "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}))
    choice = ask(client, tools=TOOLS, tool_choice="auto", parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.arguments == '{"city": "北京"}'
    assert vendor.requests[-1].json()["tools"] == TOOLS

    deltas: list[Any] = []
    for arguments in ('{"ci', 'ty": "北京"}'):
        event: Any = delta("")
        event["choices"][0]["delta"] = {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}
        deltas.append(event)
    vendor.script(sse_reply(*deltas, delta("", "tool_calls")))
    chunks = list(ask(client, tools=TOOLS, stream=True))
    assert "".join(c.choices[0].delta.tool_calls[0].function.arguments for c in chunks[:2]) == '{"city": "北京"}'


REQUESTS: dict[str, dict[str, Any]] = {
    "tools": {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    "response_format": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": [1.0, 2e-7]}}}
    },
    "sampling": {
        "seed": 2**53 + 1,
        "temperature": 0.1,
        "top_p": 1.0,
        "logit_bias": {"50256": -100},
        "stop": ["\n\n", "é"],
    },
    "unknown fields": {"extra_body": {"chat_template_kwargs": {"thinking": False}, "top_k": 20, "x": None}},
    "vision": {"messages": VISION},
    "stream": {"stream": True, "stream_options": {"include_usage": True}},
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_reaches_the_upstream_to_the_byte(client: openai.OpenAI, vendor: FakeUpstream, case: str) -> None:
    """Sent to the upstream through the server, and without it: only the model's name and the key differ."""
    reply = sse_reply(delta("a", "stop")) if case == "stream" else json_reply(ANSWER)
    vendor.script(reply, reply)
    with openai.OpenAI(base_url=f"{vendor.url}/v1", api_key="sk-upstream") as direct:
        for each, model in ((client, "chat"), (direct, UPSTREAM_MODEL)):
            answer = ask(each, model=model, **REQUESTS[case])
            if case == "stream":
                list(answer)
    through, straight = vendor.requests[-2:]
    assert through.path == straight.path
    assert through.body == straight.body
    assert through.headers["authorization"] == straight.headers["authorization"]
    assert through.headers["content-type"] == straight.headers["content-type"]


def test_embeddings(client: openai.OpenAI, vendor: FakeUpstream) -> None:
    vector = {"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}
    vendor.script(json_reply({"object": "list", "data": [vector], "model": "m", "usage": {"prompt_tokens": 1}}))
    answer = client.embeddings.create(model="embedder", input=["hello"], dimensions=2, encoding_format="float")
    assert answer.data[0].embedding == [0.5, -0.25]
    assert vendor.requests[-1].path == "/v1/embeddings"
    assert vendor.requests[-1].json()["dimensions"] == 2


def test_completions(client: openai.OpenAI, vendor: FakeUpstream) -> None:
    vendor.script(json_reply({"object": "text_completion", "choices": [{"index": 0, "text": "x"}]}))
    assert client.completions.create(model="chat", prompt="a").choices[0].text == "x"
    assert vendor.requests[-1].path == "/v1/completions"


def test_models(client: openai.OpenAI) -> None:
    assert {m.id for m in client.models.list()} == {"chat", "embedder"}
    assert client.models.retrieve("chat").id == "chat"


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_vendors_error_keeps_its_status_code_and_words(
    client: openai.OpenAI, vendor: FakeUpstream, status: int, kind: type[openai.APIStatusError], stream: bool
) -> None:
    error = {"message": "So nicht: 不行", "type": "its_type", "code": "its_code", "param": "messages[0]"}
    vendor.script(json_reply({"error": error}, status, retry_after="7", x_request_id="vendor-7"))
    before = len(vendor.requests)
    with pytest.raises(kind) as caught:
        ask(client, stream=stream)
    found = caught.value
    assert (found.status_code, found.code, found.type, found.param) == (status, "its_code", "its_type", "messages[0]")
    assert "So nicht: 不行" in found.message
    assert isinstance(found.body, dict)
    assert found.body["upstream_request_id"] == "vendor-7"
    assert found.request_id is not None
    assert found.request_id.startswith("req-")
    assert found.response.headers["retry-after"] == "7"
    assert len(vendor.requests) == before + 1


def test_our_own_errors_are_of_the_sdks_classes(server: Byzer, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no instance named") as missing:
        ask(client, model="nothing")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="Use /v1/embeddings"):
        ask(client, model="embedder")
    evil = {"host": "evil.example"}
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", default_headers=evil) as foreign,
        pytest.raises(openai.PermissionDeniedError, match="foreign"),
    ):
        ask(foreign)


def test_the_sdk_tries_again_where_it_should(server: Byzer, vendor: FakeUpstream) -> None:
    vendor.script(json_reply({"error": {"message": "busy"}}, 503), json_reply(ANSWER))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=1) as client:
        assert ask(client).choices[0].message.content == "hi"


@pytest.mark.parametrize(
    "then", [[RESET], []], ids=["the upstream's connection breaks", "the stream ends without a finish"]
)
def test_a_stream_that_breaks_raises(client: openai.OpenAI, vendor: FakeUpstream, then: list[Any]) -> None:
    vendor.script(sse_reply(delta("half"), done=False, then=then))
    got = []
    with pytest.raises(openai.APIError) as caught:  # noqa: PT012 - the iteration is what raises
        for chunk in ask(client, stream=True):
            got.append(chunk.choices[0].delta.content)  # noqa: PERF401 - what came before it raises counts
    assert got == ["half"]
    assert caught.value.code == "upstream_broken"


def test_an_error_event_of_the_vendor_is_passed_on(client: openai.OpenAI, vendor: FakeUpstream) -> None:
    vendor.script(sse_reply(delta("half"), {"error": {"message": "overloaded", "code": "its_code"}}, done=False))
    with pytest.raises(openai.APIError, match="overloaded") as caught:
        list(ask(client, stream=True))
    assert caught.value.code == "its_code"


# -- going away -----------------------------------------------------------------------------------------------------


def test_a_timeout_of_the_sdk_frees_the_upstream_and_the_slot(
    server: Byzer, client: openai.OpenAI, vendor: FakeUpstream
) -> None:
    vendor.script(raw_reply(HANG))
    with pytest.raises(openai.APITimeoutError):
        ask(client, timeout=0.3)
    vendor.requests[-1].wait_cancelled(2)
    wait_free(server, "chat")


def test_closing_a_stream_frees_the_upstream_and_the_slot(
    server: Byzer, client: openai.OpenAI, vendor: FakeUpstream
) -> None:
    vendor.script(sse_reply(delta("one"), done=False, then=[HANG]))
    stream = ask(client, stream=True)
    assert next(iter(stream)).choices[0].delta.content == "one"
    closed = time.monotonic()
    stream.close()
    assert vendor.requests[-1].wait_cancelled(2) - closed < 1
    wait_free(server, "chat")


@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_a_task_frees_the_upstream_and_the_slot(server: Byzer, vendor: FakeUpstream, stream: bool) -> None:
    vendor.script(raw_reply(HANG))
    before = len(vendor.requests)

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            messages: Any = MESSAGES
            task = asyncio.ensure_future(client.chat.completions.create(model="chat", messages=messages, stream=stream))
            while len(vendor.requests) == before:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    vendor.requests[-1].wait_cancelled(2)
    wait_free(server, "chat")
    assert detail(server, "chat")["requests"]["cancelled"] >= 1
