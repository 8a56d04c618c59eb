"""Vendors as data, several keys, and errors in a 200 answer, through the real command and server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import FakeUpstream, Received, Reply, json_reply, sse_reply
from tests.gateway import ANSWER, delta, deploy, detail, post, undeploy
from tests.harness import Byzer

from byzerllm.providers.mock import Mock, start
from byzerllm.providers.mock_log import ConversationLog

TABLE = """
type = "acme"
title = "Acme AI"
wire = "openai"
base_url = "URL/v1"
auth = "header:X-Acme-Key"
verified = "2026-11-23"
default_model = "acme-large"
models_path = "/models"

[params.api_key]
secret = true
required = true
help = "the key"

[params.team]
query = "team"
help = "the team"
"""
MODELS = {"object": "list", "data": [{"id": "acme-large"}]}
REFUSED = {"error": {"message": "That key is refused.", "code": "invalid_api_key"}}


@pytest.fixture(scope="module")
def running(byzer: Byzer) -> Byzer:
    byzer.run("server", "start")
    return byzer


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as fake:
        fake.default = json_reply(ANSWER)
        yield fake


def add_vendor(byzer: Byzer, kind: str, text: str) -> Path:
    folder = byzer.home / "providers"
    folder.mkdir(exist_ok=True)
    path = folder / f"{kind}.toml"
    path.write_text(text)
    return path


def keys(upstream: FakeUpstream) -> list[str]:
    return [r.headers["authorization"].removeprefix("Bearer ") for r in upstream.requests]


# -- formats that are not OpenAI's ------------------------------------------------------------------------------------

GEMINI = ("--pretrained_model_type", "saas/gemini", "--infer_params", "saas.api_key=sk", "saas.model=gemini-2.5-flash")


def test_a_key_is_refused_in_the_vendors_own_way(running: Byzer, upstream: FakeUpstream) -> None:
    invalid = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    error = {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT", "details": [invalid]}
    upstream.script(json_reply({"error": error}, 400))
    done = running.run("deploy", "--model", "g", *GEMINI, f"saas.base_url={upstream.url}/v1beta", code=1)
    assert "The vendor refused saas.api_key with 401: API key not valid." in done.stderr


def test_an_answer_that_came_is_not_paid_for_twice(running: Byzer, upstream: FakeUpstream) -> None:
    running.run("deploy", "--model", "g", *GEMINI, f"saas.base_url={upstream.url}/v1beta", "--no_verify")
    spoiled: list[Any] = [{"candidates": [{"finishReason": "OTHER"}]}, {"candidates": 7}, {"candidates": []}]
    for answer in spoiled:
        upstream.requests.clear()
        upstream.default = json_reply(answer)
        assert post(running, "g").status == 502
        assert len(upstream.requests) == 1
    refused = running.http("POST", "/v1/embeddings", {"model": "g", "input": "hi"})
    assert (refused.status, len(upstream.requests)) == (502, 2)
    assert "answered without embeddings" in refused.body.decode()
    undeploy(running, "g")


# -- a vendor is data -------------------------------------------------------------------------------------------------


def test_a_vendor_is_added_while_the_server_runs(running: Byzer, upstream: FakeUpstream) -> None:
    flags = ("deploy", "--model", "acme", "--pretrained_model_type", "saas/acme")
    refused = running.run(*flags, "--infer_params", "saas.api_key=k", code=2)
    assert "Unknown model type 'saas/acme'" in refused.stderr
    add_vendor(running, "acme", TABLE.replace("URL", upstream.url))
    upstream.script(json_reply(MODELS), sse_reply(delta("hi", "stop")))
    params = ('saas.extra_headers={"X-A": "b c"}', 'saas.extra_body={"top_k": 4}', "saas.team=t")
    running.run(*flags, "--infer_params", "saas.api_key=k", *params)
    assert running.run("query", "--model", "acme", "--query", "hello").stdout.strip() == "hi"
    listing, chat = upstream.requests
    assert (listing.path, listing.headers["x-acme-key"]) == ("/v1/models?team=t", "k")
    assert (chat.path, chat.headers["x-acme-key"]) == ("/v1/chat/completions?team=t", "k")
    assert "authorization" not in chat.headers
    assert chat.headers["x-a"] == "b c"
    assert (chat.json()["model"], chat.json()["top_k"]) == ("acme-large", 4)
    shown = running.json("list")
    assert shown[0]["spec"]["infer_params"]["saas.extra_headers"] == "******"
    undeploy(running, "acme")


def test_a_broken_table_is_named_with_the_reason(running: Byzer) -> None:
    path = add_vendor(running, "broken", TABLE.replace('type = "acme"', 'type = "broken"').replace("header:", "heder:"))
    done = running.run(
        "deploy", "--model", "b", "--pretrained_model_type", "saas/broken", "--infer_params", "saas.api_key=k", code=2
    )
    assert f"The vendor table {path} cannot be used: Unknown auth 'heder:X-Acme-Key'." in done.stderr
    path.unlink()


def test_who_replaces_a_built_in_type_is_warned(running: Byzer, upstream: FakeUpstream) -> None:
    path = add_vendor(running, "yi", TABLE.replace('"acme"', '"yi"').replace("URL", upstream.url))
    upstream.script(json_reply(MODELS))
    done = running.run(
        "deploy", "--model", "y", "--pretrained_model_type", "saas/yi", "--infer_params", "saas.api_key=k"
    )
    assert f"saas/yi is what {path} says, not the built-in type." in done.stderr
    path.unlink()
    undeploy(running, "y")


def test_the_file_logger_writes_each_conversation(running: Byzer, tmp_path: Path) -> None:
    elsewhere = tmp_path / "log.json"
    for name, params in (("here", ()), ("there", ("--infer_params", f"saas.log_file={elsewhere}"))):
        running.run("deploy", "--model", name, "--pretrained_model_type", "saas/filelogger", *params)
        answers = [running.run("query", "--model", name, "--query", q).stdout.strip() for q in ("one", "two")]
        assert answers == ["Messages logged successfully"] * 2
        undeploy(running, name)
    for path in (running.home / "filelogger.json", elsewhere):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert lines == [[{"role": "user", "content": q}] for q in ("one", "two")]


async def said(port: int, path: str, body: bytes, log_file: str) -> bytes:
    """The answer of a mock upstream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nx-mock-log-file: {log_file}\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    answer = await reader.read()
    writer.close()
    return answer


def test_only_who_knows_the_secret_has_the_mock_write_files(tmp_path: Path) -> None:
    async def main() -> None:
        log = ConversationLog(tmp_path)
        body = b'{"model":"m","messages":[{"role":"user","content":"a"}]}'
        for mock, prefix in ((Mock(), ""), (Mock(log=log), ""), (Mock(log=log), "/guess")):
            async with await start(mock=mock) as server:
                answer = await said(server.sockets[0].getsockname()[1], f"{prefix}/v1/chat/completions", body, "f")
            assert answer.startswith(b"HTTP/1.1 403 ")
        assert list(tmp_path.iterdir()) == []
        async with await start(mock=Mock(log=log)) as server:
            port, path = server.sockets[0].getsockname()[1], f"/{log.secret}/v1/chat/completions"
            assert (await said(port, path, body, "f")).startswith(b"HTTP/1.1 200 ")
            assert b"The request has no messages to log." in await said(port, path, b"[]", "f")
            assert b"saas.log_file=none/f: No such file" in await said(port, path, body, "none/f")
        assert (tmp_path / "f").read_bytes() == b'[{"role":"user","content":"a"}]\n'

    asyncio.run(main())


def test_the_servers_environment_names_a_proxy(make_byzer: Callable[..., Byzer], upstream: FakeUpstream) -> None:
    byzer = make_byzer(HTTP_PROXY=upstream.url, NO_PROXY="direct.example")
    byzer.run("server", "start")
    deploy(byzer, "far", "http://vendor.example")
    assert post(byzer, "far").status == 200
    assert upstream.requests[0].path == "http://vendor.example/v1/chat/completions"
    with FakeUpstream() as near:  # this machine is never reached through it
        near.default = json_reply(ANSWER)
        deploy(byzer, "near", near)
        assert post(byzer, "near").status == 200
        assert (near.requests[0].path, len(upstream.requests)) == ("/v1/chat/completions", 1)


# -- several keys -----------------------------------------------------------------------------------------------------


def test_worker_i_has_key_i_modulo_their_number(running: Byzer, upstream: FakeUpstream) -> None:
    deploy(running, "many", upstream, {"num_workers": 5}, api_key="k0, k1")
    for _ in range(5):
        assert post(running, "many").status == 200
    assert keys(upstream) == ["k0", "k1", "k0", "k1", "k0"]
    running.run("scale", "--model", "many", "--num_workers", "6")
    upstream.requests.clear()
    for _ in range(6):
        post(running, "many")
    assert sorted(keys(upstream)) == ["k0"] * 3 + ["k1"] * 3
    undeploy(running, "many")


def by_key(bad: str, reply: Reply) -> Any:
    def answer(request: Received) -> Reply:
        return reply if request.headers["authorization"] == f"Bearer {bad}" else json_reply(ANSWER)

    return answer


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refused_key_rests_and_its_requests_are_answered_with_another(
    running: Byzer, upstream: FakeUpstream, status: int
) -> None:
    upstream.default = by_key("bad", json_reply(REFUSED, status))
    deploy(running, "mixed", upstream, {"num_workers": 4}, api_key="bad,good")
    assert [post(running, "mixed").status for _ in range(6)] == [200] * 6
    assert keys(upstream).count("bad") == 1
    assert detail(running, "mixed")["total_workers"] == 4
    undeploy(running, "mixed")


def test_a_rate_limited_key_comes_back_after_the_time_the_vendor_names(running: Byzer, upstream: FakeUpstream) -> None:
    slow_down = json_reply({"error": {"message": "Slow down.", "code": "rate_limit_exceeded"}}, 429, retry_after="1")
    upstream.script(slow_down)
    deploy(running, "limited", upstream, {"num_workers": 2}, api_key="k0,k1")
    started = time.monotonic()
    assert post(running, "limited").status == 200
    assert time.monotonic() - started < 0.5, "another key needs no waiting"
    assert keys(upstream) == ["k0", "k1"]
    assert post(running, "limited").status == 200
    assert keys(upstream)[2:] == ["k1"]
    time.sleep(1.1)
    assert {post(running, "limited").status for _ in range(2)} == {200}
    assert set(keys(upstream)[3:]) == {"k0", "k1"}
    undeploy(running, "limited")


def test_the_only_key_does_not_rest_and_the_vendors_answer_goes_to_the_caller(
    running: Byzer, upstream: FakeUpstream
) -> None:
    upstream.default = json_reply(REFUSED, 401)
    deploy(running, "one", upstream, {"num_workers": 2}, api_key="k0")
    for _ in range(3):
        answer = post(running, "one")
        assert (answer.status, answer.json()["error"]["message"]) == (401, "That key is refused.")
    assert len(upstream.requests) == 3
    undeploy(running, "one")


def test_when_all_keys_are_refused_the_caller_hears_it_from_the_vendor(running: Byzer, upstream: FakeUpstream) -> None:
    upstream.default = json_reply(REFUSED, 401)
    deploy(running, "none", upstream, {"num_workers": 2}, api_key="k0,k1")
    for _ in range(2):
        answer = post(running, "none")
        assert (answer.status, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert keys(upstream) == ["k0", "k1", "k1"]
    undeploy(running, "none")


def test_deploy_checks_every_key(running: Byzer, upstream: FakeUpstream) -> None:
    upstream.default = lambda r: (
        json_reply(REFUSED, 401) if r.headers["authorization"].endswith("bad") else json_reply(MODELS)
    )
    done = running.run(
        "deploy", "--model", "k", "--pretrained_model_type", "saas/openai", "--infer_params",
        "saas.api_key=good,bad", f"saas.base_url={upstream.url}/v1", "saas.model=acme-large", code=1,
    )  # fmt: skip
    assert "The vendor refused key 2 of 2 in saas.api_key with 401: That key is refused." in done.stderr


# -- errors in a 200 answer -------------------------------------------------------------------------------------------

BALANCE = {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}
LIMIT = {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_in_a_200_answer_is_an_error(running: Byzer, upstream: FakeUpstream, stream: bool) -> None:
    deploy(running, "inside", upstream, max_retries=0)
    upstream.script(json_reply(BALANCE), sse_reply(BALANCE, done=False))
    for _ in range(2):
        answer = post(running, "inside", stream=stream)
        error = answer.json()["error"]
        assert (answer.status, error["message"], error["code"]) == (402, "insufficient balance", 1008)
    undeploy(running, "inside")


def test_an_error_in_a_200_answer_moves_the_request_to_another_key(running: Byzer, upstream: FakeUpstream) -> None:
    deploy(running, "moves", upstream, {"num_workers": 2}, api_key="k0,k1")
    upstream.script(json_reply(LIMIT))
    assert post(running, "moves").json()["choices"][0]["message"]["content"] == "hi"
    assert keys(upstream) == ["k0", "k1"]
    undeploy(running, "moves")
