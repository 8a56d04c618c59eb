"""Older APIs through the real gateway: MiniMax's and Baidu's first ones, both of Pangu's, and Spark's websocket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.fakes import FakeUpstream, Received, Reply, json_reply
from tests.gateway import Client, chat, detail, post, undeploy, wait_free
from tests.harness import Answer, Byzer, eventually
from tests.spark import FakeSpark
from tests.vendors import baidu_v1, minimax_pro, pangu, spark
from tests.vendors.baidu_v1 import PATH as BAIDU
from tests.vendors.base import Script

from byzerllm.wire.events import Finish, Reasoning, Text, Tokens, ToolCall

if TYPE_CHECKING:
    from collections.abc import Callable

HELLO: Script = [Text("Hel"), Text("lo 世界"), Tokens(7, 3), Finish("stop")]
SSE = {"content-type": "text/event-stream"}


@pytest.fixture
def place(server: Byzer) -> Iterator[Callable[..., str]]:
    """Deploys ``saas/<kind>`` with these ``saas.*`` parameters for this test alone; returns the name."""

    def deploy_it(kind: str, workers: int = 1, **params: object) -> str:
        words = {f"saas.{name}": str(value) for name, value in params.items()}
        spec = {"name": "old", "pretrained_model_type": f"saas/{kind}", "num_workers": workers, "infer_params": words}
        answer = server.http("POST", "/admin/deployments", {"spec": spec, "verify": False})
        assert json.loads(answer.body.splitlines()[-1]).get("event") == "ready", answer.body
        return "old"

    yield deploy_it
    undeploy(server, "old")


@pytest.fixture
def socket() -> Iterator[FakeSpark]:
    with FakeSpark() as socket:
        yield socket


def whole(body: bytes) -> Reply:
    return Reply([body], headers={"content-type": "application/json"})


def streamed(body: bytes) -> Reply:
    return Reply([body[:37], body[37:]], headers=SSE, framing="chunked")


def content(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def deltas(answer: Answer) -> list[dict[str, Any]]:
    """The events of a stream, without ``[DONE]``."""
    assert answer.status == 200, answer.body
    events = [line.removeprefix(b"data: ") for line in answer.body.split(b"\n\n") if line]
    return [json.loads(e) for e in events if e != b"[DONE]"]


def text_of(answer: Answer) -> str:
    return "".join(d["choices"][0]["delta"].get("content") or "" for d in deltas(answer) if d["choices"])


def error_of(answer: Answer, status: int) -> dict[str, Any]:
    assert answer.status == status, answer.body
    error: dict[str, Any] = answer.json()["error"]
    return error


# -- MiniMax --------------------------------------------------------------------------------------------------------


@pytest.fixture
def minimax(upstream: FakeUpstream, place: Callable[..., str]) -> str:
    url = f"{upstream.url}/v1/text/chatcompletion_pro"
    return place("minimax", api_url=url, api_key="k", group_id="17", model="abab5.5-chat", max_retries=0)


def test_minimax_answers(server: Byzer, upstream: FakeUpstream, minimax: str) -> None:
    upstream.script(whole(minimax_pro.answer(HELLO)), streamed(minimax_pro.stream(HELLO)))
    answer = post(server, minimax, glyph={"type": "raw"}, max_tokens=9)
    assert content(answer) == "Hello 世界"
    assert answer.json()["usage"]["total_tokens"] == 10
    assert text_of(post(server, minimax, stream=True)) == "Hello 世界"
    first, second = upstream.requests
    assert first.path == "/v1/text/chatcompletion_pro?GroupId=17"
    assert first.headers["authorization"] == "Bearer k"
    assert first.json()["reply_constraints"]["glyph"] == {"type": "raw"}
    assert first.json()["tokens_to_generate"] == 9
    assert second.json()["stream"] is True


@pytest.mark.parametrize(("code", "status"), [("1004", 401), ("1008", 402), ("1039", 429), ("1026", 400), ("7", 502)])
@pytest.mark.parametrize("stream", [False, True])
def test_minimax_reports_errors_in_a_200_answer(
    server: Byzer, upstream: FakeUpstream, minimax: str, code: str, status: int, stream: bool
) -> None:
    upstream.default = whole(minimax_pro.error_in_answer(code, "login fail"))
    error = error_of(post(server, minimax, stream=stream), status)
    assert (error["message"], error["code"]) == ("login fail", int(code))
    assert error["upstream_request_id"] == minimax_pro.REQUEST_ID


def test_what_minimax_cannot_do_is_refused_before_it_is_asked(
    server: Byzer, upstream: FakeUpstream, minimax: str
) -> None:
    error = error_of(post(server, minimax, stop=["x"]), 400)
    assert error["param"] == "stop"
    assert "has no stop" in error["message"]
    assert not upstream.requests


# -- Baidu ----------------------------------------------------------------------------------------------------------


def token(number: int) -> Reply:
    return json_reply({"access_token": f"24.{number}", "expires_in": 2592000, "session_key": "x", "scope": "public"})


def tokens_used(upstream: FakeUpstream) -> list[str]:
    """For each request, the token in it; ``-`` for one that asks for a token."""
    queries = [parse_qs(urlsplit(r.path).query) for r in upstream.requests]
    return [q["access_token"][0] if "access_token" in q else "-" for q in queries]


@pytest.fixture
def baidu(upstream: FakeUpstream, place: Callable[..., str]) -> str:
    return place("qianfan", base_url=f"{upstream.url}{BAIDU}", api_key="ak", secret_key="s&k", model="ERNIE-3.5-8K")


def test_baidus_token_is_fetched_once(server: Byzer, upstream: FakeUpstream, baidu: str) -> None:
    upstream.script(token(1), whole(baidu_v1.answer(HELLO)), streamed(baidu_v1.stream(HELLO)))
    assert content(post(server, baidu)) == "Hello 世界"
    answer = post(server, baidu, stream=True, stream_options={"include_usage": True})
    assert text_of(answer) == "Hello 世界"
    assert deltas(answer)[-1]["usage"]["prompt_tokens"] == 7
    assert tokens_used(upstream) == ["-", "24.1", "24.1"]
    asked = upstream.requests[0]
    assert (asked.method, urlsplit(asked.path).path) == ("POST", "/oauth/2.0/token")
    expected = {"grant_type": ["client_credentials"], "client_id": ["ak"], "client_secret": ["s&k"]}
    assert parse_qs(urlsplit(asked.path).query) == expected
    assert urlsplit(upstream.requests[1].path).path == f"{BAIDU}/chat/completions"


@pytest.mark.parametrize("code", ["110", "111"])
@pytest.mark.parametrize("stream", [False, True])
def test_baidus_token_is_renewed_once(
    server: Byzer, upstream: FakeUpstream, baidu: str, code: str, stream: bool
) -> None:
    expired = whole(baidu_v1.error_in_answer(code, "Access token invalid or no longer valid"))
    good = streamed(baidu_v1.stream(HELLO)) if stream else whole(baidu_v1.answer(HELLO))
    upstream.script(token(1), expired, token(2), good)
    answer = post(server, baidu, stream=stream)
    assert (text_of if stream else content)(answer) == "Hello 世界"
    assert tokens_used(upstream) == ["-", "24.1", "-", "24.2"]
    upstream.script(expired, token(3), expired)
    assert error_of(post(server, baidu, stream=stream), 401)["code"] == int(code)
    assert tokens_used(upstream)[4:] == ["24.2", "-", "24.3"]


def test_many_requests_at_the_beginning_fetch_one_token(server: Byzer, upstream: FakeUpstream, place: Any) -> None:
    def reply(request: Received) -> Reply:
        if "/oauth/" in request.path:
            return Reply([0.1, *token(1).steps], headers={"content-type": "application/json"})
        return whole(baidu_v1.answer(HELLO))

    upstream.default = reply
    model = place("qianfan", 4, base_url=f"{upstream.url}{BAIDU}", api_key="a", secret_key="s", model="m")
    clients = [Client(server) for _ in range(4)]
    for client in clients:
        client.post(chat(model), authorization=f"Bearer {server.token}")
    for client in clients:
        assert content(client.answer()) == "Hello 世界"
        client.close()
    assert tokens_used(upstream).count("-") == 1


@pytest.mark.parametrize(
    ("code", "status"), [("18", 429), ("336501", 429), ("6", 403), ("336003", 400), ("336100", 503), ("999", 500)]
)
def test_baidu_reports_errors_in_a_200_answer(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str], code: str, status: int
) -> None:
    upstream.default = whole(baidu_v1.error_in_answer(code, "Open api qps request limit reached"))
    model = place("qianfan", base_url=f"{upstream.url}{BAIDU}", access_token="24.x", model="m", max_retries=0)
    for stream in (False, True):
        error = error_of(post(server, model, stream=stream), status)
        assert (error["message"], error["code"]) == ("Open api qps request limit reached", int(code))
    assert tokens_used(upstream) == ["24.x"] * 2


def test_baidus_embeddings(server: Byzer, upstream: FakeUpstream, place: Callable[..., str]) -> None:
    data = [{"object": "embedding", "index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
    upstream.default = json_reply(
        {"id": "as-1", "object": "embedding_list", "data": data, "usage": {"prompt_tokens": 4}}
    )
    model = place("qianfan", base_url=f"{upstream.url}{BAIDU}", access_token="t", model="Embedding-V1")
    answer = server.http("POST", "/v1/embeddings", {"model": model, "input": ["a", "b"]}).json()
    assert [d["embedding"] for d in answer["data"]] == [[1.0], [2.0]]
    assert answer["usage"]["prompt_tokens"] == 4
    assert upstream.requests[0].path == f"{BAIDU}/embeddings/embedding-v1?access_token=t"
    assert upstream.requests[0].json() == {"input": ["a", "b"]}


def test_baidus_keys_are_checked_at_deploy(server: Byzer, upstream: FakeUpstream) -> None:
    words = ("saas.api_key=ak", "saas.secret_key=sk", f"saas.base_url={upstream.url}{BAIDU}", "saas.model=m")
    deploy = ("deploy", "--model", "checked", "--pretrained_model_type", "saas/qianfan", "--infer_params", *words)
    upstream.script(json_reply({"error": "invalid_client", "error_description": "unknown client id"}, 401), token(1))
    refused = server.run(*deploy, code=1)
    assert "unknown client id" in refused.stderr
    assert "sk" not in refused.stderr.replace("--no_verify", "")
    assert "was not checked" in (done := server.run(*deploy)).stderr + done.stdout
    undeploy(server, "checked")


# -- Pangu ----------------------------------------------------------------------------------------------------------


def test_a_pangu_gateway(server: Byzer, upstream: FakeUpstream, place: Callable[..., str]) -> None:
    upstream.default = whole(pangu.gateway_answer(HELLO))
    model = place("pangu", api_url=f"{upstream.url}/pangu/infer", lang="en")
    answer = post(server, model, temperature=0.5)
    assert content(answer) == "Hello 世界"
    assert answer.json()["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert text_of(post(server, model, stream=True, lang="cn")) == "Hello 世界", "in one piece"
    first, second = upstream.requests
    assert first.path == "/pangu/infer"
    assert "authorization" not in first.headers
    assert first.json() == {"lang": "en", "data": ["User: hello\nAssistant: "], "decode_strategy": {"temperature": 0.5}}
    assert second.json()["lang"] == "cn"


def test_a_pangu_deployment_with_a_users_token(
    server: Byzer, upstream: FakeUpstream, place: Callable[..., str]
) -> None:
    granted = [Reply([b'{"token":{}}'], 201, {"x-subject-token": name}) for name in ("t1", "t2")]
    refused = json_reply({"error_code": "APIGW.0301", "error_msg": "Incorrect IAM authentication information"}, 401)
    upstream.script(granted[0], streamed(pangu.stream(HELLO)), refused, granted[1], whole(pangu.answer(HELLO)))
    model = place(
        "pangu", base_url=upstream.url, project_id="p1", deployment_id="d1", pool_id="q1", iam_url=upstream.url,
        iam_user="me", iam_password="secret", iam_domain="us", model="m",
    )  # fmt: skip
    assert text_of(post(server, model, stream=True)) == "Hello 世界"
    assert content(post(server, model)) == "Hello 世界"
    assert [r.path for r in upstream.requests][:2] == [
        "/v3/auth/tokens",
        "/v2/p1/pools/q1/deployments/d1/chat/completions",
    ]
    assert [r.headers.get("x-auth-token") for r in upstream.requests] == [None, "t1", "t1", None, "t2"]
    user = {"name": "me", "password": "secret", "domain": {"name": "us"}}
    assert upstream.requests[0].json()["auth"] == {
        "identity": {"methods": ["password"], "password": {"user": user}},
        "scope": {"project": {"name": "cn-southwest-2"}},
    }


def test_a_pangu_deployment_with_an_app_code(server: Byzer, upstream: FakeUpstream, place: Callable[..., str]) -> None:
    sent = pangu.error(400, "PANGU.0010", "parameter illegal")
    upstream.script(Reply([sent.body], 400))
    model = place("pangu", base_url=upstream.url, project_id="p1", deployment_id="d1", app_code="code", model="m")
    error = error_of(post(server, model), 400)
    assert (error["message"], error["code"]) == ("parameter illegal", "PANGU.0010")
    assert upstream.requests[0].headers["x-apig-appcode"] == "code"


# -- Spark ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sparky(socket: FakeSpark, place: Callable[..., str]) -> str:
    return place(
        "sparkdesk", gpt_url=f"{socket.url}/v3.5/chat", appid="a1", api_key="key", api_secret="secret",
        domain="generalv3.5", max_retries=1,
    )  # fmt: skip


def frames(script: Script) -> list[bytes]:
    return spark.stream(script).splitlines()


def test_spark_answers(server: Byzer, socket: FakeSpark, sparky: str) -> None:
    script = [Reasoning("hm"), *HELLO]
    socket.script(frames(script), frames(script))
    answer = post(server, sparky, user="u1", temperature=0.5)
    assert content(answer) == "Hello 世界"
    assert answer.json()["choices"][0]["message"]["reasoning_content"] == "hm"
    assert answer.json()["usage"]["total_tokens"] == 10
    assert text_of(post(server, sparky, stream=True)) == "Hello 世界"
    wait_free(server, sparky)
    assert detail(server, sparky)["tokens"] == {"prompt": 14, "completion": 6}
    assert urlsplit(socket.handshakes[0].path).path == "/v3.5/chat"
    assert json.loads(socket.received[0]) == {
        "header": {"app_id": "a1", "uid": "u1"},
        "parameter": {"chat": {"domain": "generalv3.5", "temperature": 0.5}},
        "payload": {"message": {"text": [{"role": "user", "content": "hello"}]}},
    }


def test_spark_without_an_address_of_the_owner_uses_the_models_path(
    server: Byzer, socket: FakeSpark, place: Callable[..., str]
) -> None:
    socket.script(frames(HELLO))
    given = {"wire": "spark", "base_url": socket.url, "appid": "a", "api_key": "key", "api_secret": "secret"}
    assert content(post(server, place("sparkdesk", **given, model="max-32k"))) == "Hello 世界"
    assert urlsplit(socket.handshakes[0].path).path == "/chat/max-32k"


def test_spark_calls_a_tool(server: Byzer, socket: FakeSpark, sparky: str) -> None:
    socket.script(frames([ToolCall(0, "", "add", '{"a":1}'), Tokens(1, 1), Finish("tool_calls")]))
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    choice = post(server, sparky, tools=tools).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a":1}'}
    sent = json.loads(socket.received[0])["payload"]["functions"]["text"]
    assert sent == [{"name": "add", "description": "", "parameters": {"type": "object"}}]


def test_requests_at_the_same_time_have_a_connection_each(
    server: Byzer, socket: FakeSpark, place: Callable[..., str]
) -> None:
    place("sparkdesk", 3, gpt_url=f"{socket.url}/x", appid="a", api_key="key", api_secret="secret", model="lite")
    texts = ["one", "two", "three"]
    for text in texts:
        first, last = frames([Text(text), Finish("stop")])
        socket.script([first, 0.5, last])
    clients = [Client(server) for _ in texts]
    for client in clients:
        client.post(chat("old"), authorization=f"Bearer {server.token}")
    eventually(lambda: len(socket.received) == 3, 0.4, "nobody waits for the others' answers")
    assert sorted(content(c.answer()) for c in clients) == sorted(texts)
    for client in clients:
        client.close()
    assert len(socket.handshakes) == 3


@pytest.mark.parametrize(("code", "status"), [("10013", 400), ("10016", 403), ("10404", 404), ("10907", 400)])
@pytest.mark.parametrize("stream", [False, True])
def test_spark_reports_errors(
    server: Byzer, socket: FakeSpark, sparky: str, code: str, status: int, stream: bool
) -> None:
    socket.script([spark.error_in_answer(code, "功能不可用").strip()])
    error = error_of(post(server, sparky, stream=stream), status)
    assert (error["message"], error["code"]) == ("功能不可用", int(code))
    assert error["upstream_request_id"] == spark.SID
    wait_free(server, sparky)


def test_spark_at_its_limit_is_tried_again(server: Byzer, socket: FakeSpark, sparky: str) -> None:
    socket.script([spark.error_in_answer("11202", "licc error").strip()], frames(HELLO))
    assert content(post(server, sparky)) == "Hello 世界"
    assert len(socket.handshakes) == 2


def test_an_error_inside_sparks_stream_ends_it(server: Byzer, socket: FakeSpark, sparky: str) -> None:
    socket.script(spark.error_in_stream([Text("so far")], "10014", "unsafe").splitlines())
    *pieces, last = deltas(post(server, sparky, stream=True))
    assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces) == "so far"
    assert last["error"]["code"] == 10014


def test_spark_refuses_a_handshake(server: Byzer, socket: FakeSpark, place: Callable[..., str]) -> None:
    model = place("sparkdesk", gpt_url=f"{socket.url}/x", appid="a", api_key="k", api_secret="wrong", domain="lite")
    error = error_of(post(server, model), 401)
    assert "HMAC signature does not match" in error["message"]
    assert "wrong" not in json.dumps(error)


def test_a_client_that_leaves_closes_sparks_connection_at_once(server: Byzer, socket: FakeSpark, sparky: str) -> None:
    first, second, _ = frames(HELLO)
    steps: list[bytes | float] = [0.05, second]
    socket.script([first, *steps * 200])
    with Client(server) as client:
        client.post(chat(sparky, stream=True), authorization=f"Bearer {server.token}")
        client.read_until(b"Hel")
    eventually(lambda: len(socket.gone) == 1, 1.0, "the vendor sees that the client left")
    wait_free(server, sparky)
