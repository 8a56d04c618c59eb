"""Every format whose bytes pass through, against answers as real vendors send them, through the real server."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes import FakeUpstream, Reply
from tests.gateway import MESSAGES, UPSTREAM_MODEL, deploy, detail, wait_free

from byzerllm.wire import WIRES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Byzer


@dataclass(frozen=True)
class Sample:
    """What servers that speak one format send. Usage is ``(prompt, completion)``; None: they do not say."""

    paths: dict[str, str]  # client's path -> upstream's, for every task of the format
    answers: dict[str, tuple[bytes, tuple[int, int] | None]]
    streams: dict[str, tuple[bytes, tuple[int, int] | None]]
    broken: dict[str, bytes] = field(default_factory=dict)  # streams that simply stop
    failing: dict[str, bytes] = field(default_factory=dict)  # streams in which the vendor reports an error
    errors: dict[str, tuple[int, bytes, str, Any]] = field(default_factory=dict)  # status, body, message, code


def events(*values: Any, done: bool = True) -> bytes:
    lines = [v if isinstance(v, str) else json.dumps(v, separators=(",", ":")) for v in values]
    return "".join(f"data: {line}\n\n" for line in [*lines, *["[DONE]"] * done]).encode()


def chunk(content: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {
        "id": "chatcmpl-B", "object": "chat.completion.chunk", "created": 1741569952, "model": "x",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], **more,
    }  # fmt: skip


def usage(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 0, **more}}


def error_of(message: str, **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


MESSAGE = {"role": "assistant", "content": 'say "prompt_tokens": 99 and [DONE]', "refusal": None}
WHOLE = {
    "id": "chatcmpl-B", "object": "chat.completion", "created": 1, "model": "x",
    "choices": [{"index": 0, "message": MESSAGE, "logprobs": None, "finish_reason": "stop"}],
}  # fmt: skip
DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 4, "audio_tokens": 0},
}
TIMINGS = {"cache_n": 5, "prompt_n": 2, "prompt_ms": 1.5, "predicted_n": 9, "predicted_ms": 3.25}
LAST = {"id": "chatcmpl-B", "object": "chat.completion.chunk", "created": 1, "model": "x", "choices": []}

SAMPLES = {
    "openai": Sample(
        paths={f"/v1/{path}": f"/v1/{path}" for path in ("chat/completions", "completions", "embeddings")},
        answers={
            "openai": (json.dumps({**WHOLE, **usage(13, 7, **DETAILS), "service_tier": "default"}).encode(), (13, 7)),
            "vllm": (json.dumps({**WHOLE, **usage(5, 2), "prompt_logprobs": None}).encode(), (5, 2)),
            "deepseek": (json.dumps({**WHOLE, **usage(8, 3, prompt_cache_hit_tokens=0)}, indent=2).encode(), (8, 3)),
            "without usage": (json.dumps(WHOLE).encode(), None),
            "embedding": (b'{"data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":4,"total_tokens":4}}', (4, 0)),
        },
        streams={
            "openai": (events(chunk(""), chunk("Hi"), chunk(None, "stop"), {**LAST, **usage(9, 1, **DETAILS)}), (9, 1)),
            "usage in every chunk": (events(chunk("a", **usage(3, 1)), chunk("b", "stop", **usage(3, 2))), (3, 2)),
            "usage null at first": (events(chunk("a", usage=None), chunk(None, "stop", **usage(6, 5))), (6, 5)),
            "vllm": (events(chunk("a"), chunk("", "length", stop_reason=None)), None),
            "llama.cpp": (events(chunk("a"), chunk(None, "stop", timings=TIMINGS)), (7, 9)),
            "openrouter": (b": OPENROUTER PROCESSING\n\n" * 3 + events(chunk("a"), chunk("", "stop")), None),
            "crlf": (events(chunk("a"), chunk(None, "stop"), {**LAST, **usage(1, 2)}).replace(b"\n", b"\r\n"), (1, 2)),
            "no space after the colon": (events(chunk("a"), chunk(None, "stop")).replace(b"data: ", b"data:"), None),
            "no done": (events(chunk("a"), chunk(None, "stop"), {**LAST, **usage(2, 2)}, done=False), (2, 2)),
            "no last line end": (events(chunk("a"), chunk(None, "tool_calls")).rstrip(), None),
            "a long last chunk": (events(chunk("a"), chunk(None, "stop", x="y" * 3000, **usage(2, 1))), (2, 1)),
        },
        broken={
            "after a chunk": events(chunk("a"), chunk("b"), done=False),
            "inside a chunk": events(chunk("a"), done=False) + b'data: {"id":"chatcm',
            "content that looks like an end": events(chunk('"finish_reason": "stop" [DONE] x'), done=False),
            "an empty finish_reason": events(chunk("a", ""), chunk("b", ""), done=False),
        },
        failing={
            "openai": events(chunk("a"), {"error": {"message": "sorry", "type": "server_error"}}, done=False),
            "vllm": events(chunk("a"), {"error": {"object": "error", "message": "bad", "code": 400}}),
        },
        errors={
            "openai": (401, error_of("Incorrect key", code="invalid_api_key"), "Incorrect key", "invalid_api_key"),
            "deepseek": (402, error_of("Insufficient Balance", type="unknown_error", code="x"), "Balance", "x"),
            "vllm": (400, b'{"object":"error","message":"too long","type":"Bad","code":400}', "too long", 400),
            "fastapi": (422, b'{"detail":"Field required"}', "Field required", "upstream_error"),
            "zhipu": (429, error_of("您的账户已达到速率限制", code="1302"), "速率限制", "1302"),
            "proxy": (413, b"<html><head><title>413 No</title></head><h1>413</h1></html>", "413 No", "upstream_error"),
            "nothing": (404, b"", "status 404", "upstream_error"),
            "no text": (400, b"\xff\xfe\x00", "", "upstream_error"),
        },
    )
}  # fmt: skip

NAMES = sorted(WIRES)


def cases(kind: str) -> list[Any]:
    return [pytest.param(wire, case, id=f"{wire}-{case}") for wire in NAMES for case in getattr(SAMPLES[wire], kind)]


@pytest.fixture(scope="module")
def server(byzer: Byzer) -> Byzer:
    byzer.run("server", "start")
    return byzer


@pytest.fixture(scope="module")
def vendor() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


_deployed = 0


@pytest.fixture
def model(server: Byzer, vendor: FakeUpstream) -> str:
    """A fresh instance: its counters begin at zero."""
    global _deployed
    _deployed += 1
    deploy(server, f"m{_deployed}", vendor, max_retries=0)
    return f"m{_deployed}"


def tokens(server: Byzer, model: str) -> tuple[int, int]:
    wait_free(server, model)
    found = detail(server, model)["tokens"]
    return found["prompt"], found["completion"]


def ask(server: Byzer, model: str, path: str = "/v1/chat/completions", **more: Any) -> Any:
    return server.http("POST", path, {"model": model, "messages": MESSAGES, **more})


def test_every_format_has_its_samples() -> None:
    assert sorted(SAMPLES) == NAMES


@pytest.mark.parametrize("wire", NAMES)
def test_requests(server: Byzer, vendor: FakeUpstream, model: str, wire: str) -> None:
    for path, theirs in SAMPLES[wire].paths.items():
        assert ask(server, model, path, unknown=[1.0]).status == 200
        received = vendor.requests[-1]
        assert (received.method, received.path) == ("POST", theirs)
        assert received.headers["authorization"] == "Bearer sk-upstream"
        assert received.headers["content-type"] == "application/json"
        assert received.body == b'{"model":"%s","messages":%s,"unknown":[1.0]}' % (
            UPSTREAM_MODEL.encode(),
            json.dumps(MESSAGES).encode(),
        )


@pytest.mark.parametrize(("wire", "case"), cases("answers"))
def test_answers(server: Byzer, vendor: FakeUpstream, model: str, wire: str, case: str) -> None:
    body, used = SAMPLES[wire].answers[case]
    vendor.script(Reply([body], headers={"content-type": "application/json; charset=utf-8"}))
    answer = ask(server, model)
    assert answer.body == body
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert tokens(server, model) == (used or (0, 0))


@pytest.mark.parametrize(("wire", "case"), cases("streams"))
@pytest.mark.parametrize("size", [0, 1, 700], ids=["at once", "by byte", "by packet"])
def test_streams(server: Byzer, vendor: FakeUpstream, model: str, wire: str, case: str, size: int) -> None:
    body, used = SAMPLES[wire].streams[case]
    pieces = [body[at : at + size] for at in range(0, len(body), size)] if size else [body]
    vendor.script(Reply(pieces, headers={"content-type": "text/event-stream; charset=utf-8"}, framing="chunked"))
    answer = ask(server, model, stream=True)
    assert answer.body == body
    assert tokens(server, model) == (used or (0, 0))
    assert detail(server, model)["errors"] == {}


@pytest.mark.parametrize(("wire", "case"), cases("broken"))
def test_streams_that_stop(server: Byzer, vendor: FakeUpstream, model: str, wire: str, case: str) -> None:
    body = SAMPLES[wire].broken[case]
    vendor.script(Reply([body], headers={"content-type": "text/event-stream"}, framing="chunked"))
    answer = ask(server, model, stream=True)
    assert answer.body.startswith(body)
    error = json.loads(answer.body.removeprefix(body).strip().removeprefix(b"data: "))["error"]
    assert error["code"] == "upstream_broken"
    assert detail(server, model)["errors"] == {"upstream_broken": 1}


@pytest.mark.parametrize(("wire", "case"), cases("failing"))
def test_streams_in_which_the_vendor_reports_an_error(
    server: Byzer, vendor: FakeUpstream, model: str, wire: str, case: str
) -> None:
    body = SAMPLES[wire].failing[case]
    vendor.script(Reply([body], headers={"content-type": "text/event-stream"}, framing="chunked"))
    assert ask(server, model, stream=True).body == body  # in the vendor's words, and in no other
    assert detail(server, model)["errors"] == {"upstream_error": 1}


@pytest.mark.parametrize(("wire", "case"), cases("errors"))
@pytest.mark.parametrize("stream", [False, True])
def test_errors(server: Byzer, vendor: FakeUpstream, model: str, wire: str, case: str, stream: bool) -> None:
    status, body, message, code = SAMPLES[wire].errors[case]
    vendor.script(Reply([body], status))
    answer = ask(server, model, stream=stream)
    assert answer.status == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["message"]
    assert error["code"] == code
    assert tokens(server, model) == (0, 0)
    assert detail(server, model)["errors"] == {"invalid_request" if status in (400, 413, 422) else "upstream_error": 1}
