"""The OpenAI surface over real HTTP: who may call, what is refused and how, headers, metrics and odd clients."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.fakes import HANG, FakeUpstream, json_reply, raw_reply, sse_reply
from tests.gateway import (
    ANSWER,
    UPSTREAM_MODEL,
    Client,
    chat,
    delta,
    deploy,
    detail,
    post,
    wait_free,
)
from tests.harness import Byzer, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NO_KEY = {"authorization": ""}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def vendor() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        upstream.default = json_reply(ANSWER, x_request_id="vendor-1", x_ratelimit_remaining_requests="9")
        yield upstream


@pytest.fixture(scope="module")
def server(make_byzer: Callable[..., Byzer], vendor: FakeUpstream) -> Byzer:
    byzer = make_byzer(BYZERLLM_MAX_BODY_MB="1")
    byzer.run("server", "start")
    deploy(byzer, "chat", vendor, {"num_workers": 2}, max_retries=0)
    deploy(byzer, "embedder", vendor, model="text-embedding-3")
    return byzer


# -- who may call ---------------------------------------------------------------------------------------------------


def get(byzer: Byzer, path: str, **headers: str) -> Any:
    return byzer.http("GET", path, headers={**NO_KEY, **headers})


def test_on_loopback_no_key_is_needed(server: Byzer) -> None:
    for path in ("/v1/models", "/v1/models/chat", "/metrics", "/health", "/version"):
        assert get(server, path).status == 200
    assert server.http("POST", CHAT, chat("chat"), headers=NO_KEY).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8765"},
        {"host": "localhost.evil.example"},
        {"host": "169.254.169.254"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost.evil.example"},
        {"origin": "chrome-extension://abc"},
        {"host": "127.0.0.1", "origin": "http://127.0.0.1.nip.io"},
        {"host": "["},
    ],
    ids=str,
)
def test_a_foreign_web_page_is_refused(server: Byzer, vendor: FakeUpstream, headers: dict[str, str]) -> None:
    before = len(vendor.requests)
    for answer in (
        server.http("POST", CHAT, chat("chat"), headers={**NO_KEY, **headers}),
        get(server, "/v1/models", **headers),
        get(server, "/metrics", **headers),
    ):
        assert answer.status == 403
        assert answer.json()["error"]["code"] == "forbidden"
    assert len(vendor.requests) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost"},
        {"host": "LOCALHOST:1234"},
        {"host": "127.0.0.1:1"},
        {"host": "[::1]:8765"},
        {"origin": "http://localhost:3000"},
    ],
    ids=str,
)
def test_this_machine_is_not_foreign(server: Byzer, headers: dict[str, str]) -> None:
    assert get(server, "/v1/models", **headers).status == 200


def test_the_admin_token_opens_the_api_from_anywhere(server: Byzer) -> None:
    foreign = {"host": "evil.example", "origin": "https://evil.example"}
    assert server.http("GET", "/v1/models", headers=foreign).status == 200


def test_once_a_key_is_set_it_is_needed(make_byzer: Callable[..., Byzer]) -> None:
    byzer = make_byzer(BYZERLLM_API_KEY="sk-mine")
    byzer.run("server", "start")
    for wrong in ("", "Bearer", "Bearer sk-other", "Bearer sk-mine2", "Basic c2stbWluZTo="):
        for answer in (
            get(byzer, "/v1/models", authorization=wrong),
            get(byzer, "/metrics", authorization=wrong),
            byzer.http("POST", CHAT, chat("m"), headers={"authorization": wrong}),
        ):
            assert answer.status == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert "sk-" not in answer.body.decode()
    for right in ("Bearer sk-mine", "bearer  sk-mine", f"Bearer {byzer.token}"):
        assert get(byzer, "/v1/models", authorization=right, host="any.example").status == 200
    assert get(byzer, "/health").status == 200
    assert get(byzer, "/admin/server", authorization="Bearer sk-mine").status == 401


@pytest.mark.parametrize("path", ["server", "deployments", "openapi.json", "nothing", "deployments/chat/stat"])
def test_the_admin_api_needs_its_token(server: Byzer, path: str) -> None:
    for wrong in ("", "Bearer wrong", f"Bearer {server.token}x"):
        answer = get(server, f"/admin/{path}", authorization=wrong)
        assert answer.status == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"


# -- what is refused ------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_answered_with_the_known_ones(server: Byzer) -> None:
    for answer in (post(server, "chta"), get(server, "/v1/models/chta")):
        assert answer.status == 404
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "'chta'" in error["message"]
        assert "chat, embedder" in error["message"]


NESTED = b'{"model": "chat", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no JSON object"),
        (b"{", "no JSON object"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b'"chat"', "no JSON object"),
        (b'{"model": "chat"} x', "no JSON object"),
        (b'{"model": "ch\xff"}', "model"),
        (b'{"messages": []}', "'model' is missing"),
        (b'{"model": null}', "'model' "),
        (b'{"model": ""}', "'model' is missing"),
        (b'{"model": 7}', "'model' must be a string"),
        (b'{"model": "chat", "stream": "yes"}', "'stream' must be true or false"),
        (b'{"model": "chat", "stream": 1}', "'stream' must be true or false"),
        (NESTED, "no JSON object"),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_a_bad_body_is_a_400_that_says_what_is_wrong(
    server: Byzer, vendor: FakeUpstream, body: bytes, message: str
) -> None:
    before = len(vendor.requests)
    answer = server.http("POST", CHAT, body)
    assert answer.status == 400, answer.body
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_request")
    assert message in error["message"]
    assert "x-request-id" in answer.headers
    assert len(vendor.requests) == before


def test_an_embedding_instance_has_no_chat(server: Byzer) -> None:
    answer = post(server, "embedder")
    assert answer.status == 400
    assert "/v1/embeddings" in answer.json()["error"]["message"]


def test_a_body_over_the_limit_is_a_413(server: Byzer) -> None:
    large = chat("chat", pad="x" * 1_100_000)
    with Client(server) as client:
        for headers in ({}, {"expect": "100-continue"}):  # declared: refused before it is read
            client.post(large, **headers)
            answer = client.answer()
            assert answer.status == 413
            assert answer.json()["error"]["code"] == "request_too_large"
            assert "BYZERLLM_MAX_BODY_MB" in answer.json()["error"]["message"]
        client.post(chat("chat"))
        assert client.answer().status == 200
    with Client(server) as client:  # not declared: refused when it is too much
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(40):
            client.send(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        client.send(b"0\r\n\r\n")
        assert client.answer().status == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("DELETE", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("PUT", "/v1/embeddings", 405),
        ("POST", "/health", 405),
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("POST", "/v1/files", 404),
        ("GET", "/v1/chat/completions/", 404),
        ("OPTIONS", CHAT, 405),
    ],
)
def test_other_methods_and_paths(server: Byzer, method: str, path: str, status: int) -> None:
    answer = server.http(method, path)
    assert answer.status == status
    assert answer.json()["error"]["message"]


def test_a_full_queue_is_a_503_that_says_when_to_come_back(server: Byzer) -> None:
    with FakeUpstream() as upstream:
        go = threading.Event()
        upstream.default = json_reply(ANSWER, 200, go)
        deploy(server, "full", upstream, {"max_queue": 2})
        with ThreadPoolExecutor(3) as threads:
            accepted = [threads.submit(post, server, "full") for _ in range(3)]
            eventually(lambda: detail(server, "full")["queue"]["waiting"] == 2)
            refused = post(server, "full")
            go.set()
            assert [a.result().status for a in accepted] == [200] * 3
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        error = refused.json()["error"]
        assert error["code"] == "overloaded"
        assert "--max_queue 2" in error["message"]
        waits = sorted(int(a.result().headers["x-byzerllm-queue-ms"]) for a in accepted)
        assert waits[0] < waits[2]
    wait_free(server, "full")


def test_a_wait_longer_than_the_queue_timeout_is_a_503(server: Byzer) -> None:
    with FakeUpstream() as upstream:
        upstream.default = raw_reply(HANG)
        deploy(server, "slow", upstream, {"queue_timeout": 0.2})
        with Client(server) as first:
            first.post(chat("slow"))
            upstream.wait_requests(1)
            refused = post(server, "slow")
        assert refused.status == 503
        assert "--queue_timeout" in refused.json()["error"]["message"]
        assert "retry-after" in refused.headers
        wait_free(server, "slow")
        assert len(upstream.requests) == 1


# -- what an answer carries -----------------------------------------------------------------------------------------


def test_the_headers_of_an_answer(server: Byzer) -> None:
    answer = server.http("POST", CHAT, chat("chat"), headers={"x-request-id": "my-id"})
    assert answer.json() == ANSWER
    assert answer.headers["x-request-id"] == "my-id"
    assert answer.headers["x-upstream-request-id"] == "vendor-1"
    assert answer.headers["x-byzerllm-worker"] in ("0", "1")
    assert int(answer.headers["x-byzerllm-queue-ms"]) < 500
    assert answer.headers["x-ratelimit-remaining-requests"] == "9"
    assert answer.headers["content-type"] == "application/json"
    assert "server" not in answer.headers


def test_requests_without_an_id_get_one_each(server: Byzer) -> None:
    for unfit in ({}, {"x-request-id": ""}, {"x-request-id": "x" * 200}, {"x-request-id": "two words"}):
        ids = {server.http("POST", CHAT, chat("chat"), headers=unfit).headers["x-request-id"] for _ in range(3)}
        assert len(ids) == 3
        assert all(re.fullmatch(r"req-[0-9a-f]+", i) for i in ids)


def test_workers_take_turns(server: Byzer) -> None:
    workers = [post(server, "chat").headers["x-byzerllm-worker"] for _ in range(4)]
    assert workers in (["0", "1"] * 2, ["1", "0"] * 2)


def test_only_the_models_name_and_the_credentials_change(server: Byzer, vendor: FakeUpstream) -> None:
    body = b'{"zeta": 1e400, "model": "chat", "n" :1.10, "\\u00e9": "\\ud83d\\ude00\xf0\x9f\x98\x80", "a": [ {} ]}'
    assert server.http("POST", CHAT, body, headers={"x-client": "1", "cookie": "c"}).status == 200
    received = vendor.requests[-1]
    assert received.path == "/v1/chat/completions"
    assert received.headers["authorization"] == "Bearer sk-upstream"
    assert not {"x-client", "cookie", "x-request-id"} & received.headers.keys()
    raw = b'{"zeta":1e400,"model":"%s","n":1.10,"\xc3\xa9":"\\ud83d\\ude00\xf0\x9f\x98\x80","a":[ {} ]}'
    assert received.body == raw % UPSTREAM_MODEL.encode()


def test_a_stream_is_relayed_as_it_comes(server: Byzer, vendor: FakeUpstream) -> None:
    events = [delta("a"), delta("b"), delta("", "stop"), b": a comment", b'{"usage": {"prompt_tokens": 5}}']
    vendor.script(sse_reply(*events))
    answer = post(server, "chat", stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    parts = [e if isinstance(e, bytes) else json.dumps(e).encode() for e in events]
    assert answer.body == b"".join(b"data: %s\n\n" % p for p in [*parts, b"[DONE]"])


def test_every_byte_of_a_stream_in_a_packet_of_its_own(server: Byzer, vendor: FakeUpstream) -> None:
    """Where the packets end says nothing about where an event ends, not even for the last one."""
    text = b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(delta("a")).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    steps: list[Any] = [head]
    for byte in text:
        steps += [b"1\r\n%c\r\n" % byte, 0.0005]
    vendor.script(raw_reply(*steps, b"0\r\n\r\n"))
    answer = post(server, "chat", stream=True)
    assert answer.body == text
    assert detail(server, "chat")["errors"].get("upstream_broken") is None


def test_models(server: Byzer) -> None:
    listed = get(server, "/v1/models").json()
    assert listed["object"] == "list"
    assert {m["id"] for m in listed["data"]} >= {"chat", "embedder"}
    one = get(server, "/v1/models/chat").json()
    assert one in listed["data"]
    assert one["object"] == "model"
    assert isinstance(one["created"], int)


def test_metrics_are_prometheus_and_count_what_happened(server: Byzer, vendor: FakeUpstream) -> None:
    deploy(server, "counted", vendor, max_retries=0)

    def read() -> dict[tuple[str, str, str], float]:
        answer = get(server, "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return {
            (
                s.name,
                s.labels.get("outcome") or s.labels.get("kind") or s.labels.get("le", ""),
                s.labels["model"],
            ): s.value
            for family in text_string_to_metric_families(answer.body.decode())
            for s in family.samples
        }

    vendor.script(json_reply(ANSWER), json_reply({"error": {"message": "no"}}, 500), sse_reply(delta("a", "stop")))
    assert [post(server, "counted", stream=s).status for s in (False, False, True)] == [200, 500, 200]
    eventually(lambda: read()["byzerllm_active_requests", "", "counted"] == 0)
    found = read()

    def value(name: str, label: str = "") -> float:
        return found[f"byzerllm_{name}", label, "counted"]

    assert value("requests_total", "ok") == 2
    assert value("requests_total", "upstream_error") == 1
    assert (value("tokens_total", "prompt"), value("tokens_total", "completion")) == (3, 2)
    assert (value("slots"), value("slots_free"), value("workers"), value("queue_waiting")) == (1, 1, 1, 0)
    assert value("request_seconds_count") == value("request_seconds_bucket", "+Inf") == 3
    assert value("time_to_first_token_seconds_count") == 1


def test_the_openapi_document_describes_every_admin_path(server: Byzer) -> None:
    document = server.http("GET", "/admin/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    text = json.dumps(document)
    components = document["components"]
    for kind, name in re.findall(r'"#/components/(\w+)/(\w+)"', text):
        assert name in components[kind]
    for path, item in document["paths"].items():
        for name in re.findall(r"{(\w+)}", path):
            assert name in [p["name"] for p in item["parameters"]]
        for method, operation in item.items():
            if method != "parameters":
                assert operation["summary"]
                assert operation["responses"]
    spec = components["schemas"]["DeploymentSpec"]["properties"]
    assert {"name", "num_workers", "infer_params", "max_queue"} <= spec.keys()
    for path, item in document["paths"].items():  # and each of them is there
        if "get" in item:
            assert server.http("GET", path.replace("{name}", "no-such")).json().get("error", {}).get("code") in (
                None,
                "model_not_found",
            )


def test_every_refusal_has_an_id_and_says_what_is_taken(server: Byzer) -> None:
    wrong_method = server.http("GET", CHAT, headers={"x-request-id": "mine-1"})
    assert (wrong_method.status, wrong_method.headers["allow"]) == (405, "POST")
    assert wrong_method.headers["x-request-id"] == "mine-1"
    assert server.http("POST", "/v1/models", {}).headers["allow"] == "GET, HEAD"
    assert server.http("GET", "/v1/files").headers["x-request-id"].startswith("req-")
    foreign = server.http("POST", CHAT, {}, headers={**NO_KEY, "origin": "https://evil.example"})
    assert (foreign.status, foreign.headers["x-request-id"][:4]) == (403, "req-")
