"""``byzerllm serve``: the OpenAI API opened to others, with a key, TLS and CORS, for as long as the command runs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.between import Authority
from tests.fakes import FakeUpstream, sse_reply
from tests.gateway import ANSWER, MESSAGES, UPSTREAM_MODEL, deploy
from tests.harness import Answer, Byzer, eventually, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KEY = "sk-of-the-team"
CHAT = {"model": "chat", "messages": MESSAGES}


@dataclass(frozen=True)
class Served:
    """An open listener and the command that holds it."""

    process: subprocess.Popen[str]
    url: str
    port: int

    def http(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str = KEY,
        tls: ssl.SSLContext | None = None,
        **headers: str,
    ) -> Answer:
        made = (
            http.client.HTTPSConnection("localhost", self.port, timeout=20, context=tls)
            if tls
            else http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        )
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            sent["authorization"] = f"Bearer {key}"
        with contextlib.closing(made):
            made.request(method, path, None if body is None else json.dumps(body), sent)
            answer = made.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


@pytest.fixture(scope="module")
def server(byzer: Byzer, vendor: FakeUpstream) -> Byzer:
    byzer.run("server", "start")
    deploy(byzer, "chat", vendor)
    return byzer


@pytest.fixture
def serve(server: Byzer) -> Iterator[Callable[..., Served]]:
    """``serve(*flags)`` opens a listener on a free port; ended with the test."""
    with contextlib.ExitStack() as stack:

        def open_one(*flags: str | Path, key: str = KEY) -> Served:
            port = free_port()
            given = ["--port", str(port), *(["--api_key", key] if key else []), *flags]
            process = stack.enter_context(server.background("serve", *given))
            assert process.stdout
            url = process.stdout.readline().strip()
            assert url.endswith(f":{port}"), process.stderr.read() if process.stderr else ""
            return Served(process, url, port)

        yield open_one
    eventually(lambda: server.http("GET", "/v1/models", headers={"authorization": ""}).status == 200)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# -- the key --------------------------------------------------------------------------------------------------------


def test_with_a_key_the_api_is_open_to_those_who_have_it(server: Byzer, serve: Callable[..., Served]) -> None:
    served = serve("--host", "0.0.0.0")
    assert served.url == f"http://0.0.0.0:{served.port}"
    assert served.http("POST", "/v1/chat/completions", CHAT, host="gateway.example").json() == ANSWER
    assert served.http("GET", "/v1/models", host="gateway.example").json()["data"][0]["id"] == "chat"
    for wrong in ("", "sk-other"):
        for host in ("gateway.example", "localhost", "127.0.0.1"):
            assert served.http("POST", "/v1/chat/completions", CHAT, key=wrong, host=host).status == 401
            assert served.http("GET", "/metrics", key=wrong, host=host).status == 401
    assert KEY not in " ".join(psutil.Process(server.pid).cmdline()) + server.log_tail(1000)
    assert server.http("GET", "/v1/models", headers={"authorization": ""}).status == 401  # set is set, everywhere


def test_the_admin_api_is_not_there(server: Byzer, serve: Callable[..., Served]) -> None:
    served = serve("--host", "0.0.0.0")
    for path in ("/admin/server", "/admin/deployments", "/admin/openapi.json"):
        for key in (KEY, server.token):
            assert served.http("GET", path, key=key).status == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_beyond_loopback_a_key_is_needed(server: Byzer, host: str) -> None:
    done = server.run("serve", "--host", host, "--port", str(free_port()), code=2)
    assert "--api_key" in done.stderr
    body = {"host": host, "port": 0}
    answer = server.http("POST", "/admin/listeners", body)  # nor can one ask the server itself
    assert answer.status == 400
    assert "--api_key" in answer.body.decode()


def test_anothers_key_does_not_open_a_second_address(server: Byzer, serve: Callable[..., Served]) -> None:
    """That key goes when its listener closes; the other address would stay open to everyone."""
    serve()
    answer = server.http("POST", "/admin/listeners", {"host": "0.0.0.0", "port": 0})
    assert answer.status == 400


def test_on_loopback_without_a_key(serve: Callable[..., Served]) -> None:
    served = serve(key="")
    assert served.http("GET", "/v1/models", key="").status == 200
    assert served.http("GET", "/v1/models", key="", host="evil.example").status == 403
    assert served.http("GET", "/v1/models", key="", origin="https://evil.example").status == 403


def test_the_key_may_be_a_reference(server: Byzer, tmp_path: Path, serve: Callable[..., Served]) -> None:
    (tmp_path / "key").write_text("sk-in-a-file\n")
    served = serve("--api_key", f"file:{tmp_path / 'key'}", key="")
    assert served.http("GET", "/v1/models", key="sk-in-a-file").status == 200
    missing = server.run("serve", "--api_key", "env:NO_SUCH_VARIABLE", "--port", str(free_port()), code=2)
    assert "NO_SUCH_VARIABLE" in missing.stderr


# -- what it serves -------------------------------------------------------------------------------------------------


def test_a_served_model_name_answers_whatever_is_asked_for(
    server: Byzer, vendor: FakeUpstream, serve: Callable[..., Served]
) -> None:
    served = serve("--served_model_name", "chat")
    for body in ({**CHAT, "model": "gpt-4o"}, {"messages": MESSAGES}):
        assert served.http("POST", "/v1/chat/completions", body).json() == ANSWER
        assert vendor.requests[-1].json()["model"] == UPSTREAM_MODEL
    assert server.http("POST", "/v1/chat/completions", {**CHAT, "model": "gpt-4o"}).status == 404


def test_a_stream(vendor: FakeUpstream, serve: Callable[..., Served]) -> None:
    vendor.script(sse_reply(b'{"choices": [{"finish_reason": "stop"}]}'))
    assert serve().http("POST", "/v1/chat/completions", {**CHAT, "stream": True}).body.endswith(b"[DONE]\n\n")


def preflight(served: Served, origin: str) -> Answer:
    return served.http(
        "OPTIONS",
        "/v1/chat/completions",
        key="",
        origin=origin,
        access_control_request_method="POST",
        access_control_request_headers="authorization, x-mine",
    )


def test_cors(serve: Callable[..., Served]) -> None:
    served = serve()
    answer = preflight(served, "https://app.example")
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "authorization, x-mine"
    assert "access-control-allow-credentials" not in answer.headers
    for body, key, status in ((CHAT, KEY, 200), ({**CHAT, "model": "none"}, KEY, 404), (CHAT, "wrong", 401)):
        answer = served.http("POST", "/v1/chat/completions", body, key=key, origin="https://app.example")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, "https://app.example")


def test_cors_can_be_narrowed(serve: Callable[..., Served]) -> None:
    origins = json.dumps(["https://app.example"])
    served = serve("--allowed_origins", origins, "--allow_credentials")
    allowed, other = preflight(served, "https://app.example"), preflight(served, "https://evil.example")
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert allowed.headers["access-control-allow-credentials"] == "true"
    assert "access-control-allow-origin" not in other.headers


def test_tls(server: Byzer, authority: Authority, serve: Callable[..., Served]) -> None:
    key, certificate = authority.key, authority.certificate
    served = serve("--ssl_keyfile", key, "--ssl_certfile", certificate)
    assert served.url.startswith("https://")
    context = ssl.create_default_context(cafile=authority.ca)
    assert served.http("POST", "/v1/chat/completions", CHAT, tls=context).json() == ANSWER
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        served.http("GET", "/v1/models")  # plain HTTP is not spoken there

    port = str(free_port())
    assert "--ssl_certfile" in server.run("serve", "--port", port, "--ssl_keyfile", key, code=2).stderr
    swapped = server.run("serve", "--port", port, "--ssl_keyfile", certificate, "--ssl_certfile", key, code=2)
    assert str(key) in swapped.stderr
    assert not accepts(int(port))
    assert server.http("GET", "/v1/models", headers={"authorization": ""}).status == 401  # by the one that is open


# -- its life -------------------------------------------------------------------------------------------------------


def test_a_taken_port_and_an_address_that_is_not_ours(server: Byzer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = server.run("serve", "--port", str(port), "--api_key", KEY, code=1)
    assert f"127.0.0.1:{port} cannot be bound" in done.stderr
    for host in ("192.0.2.1", "no-such-host.invalid"):
        done = server.run("serve", "--host", host, "--port", str(free_port()), "--api_key", KEY, code=None)
        assert done.returncode in (1, 2)
        assert host in done.stderr
    assert server.http("GET", "/v1/models", headers={"authorization": ""}).status == 200  # their key is not set


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_closes_with_the_command(server: Byzer, serve: Callable[..., Served], how: signal.Signals) -> None:
    served = serve()
    assert accepts(served.port)
    os.kill(served.process.pid, how)
    eventually(lambda: not accepts(served.port), 5, "the port is closed")
    eventually(lambda: server.http("GET", "/v1/models", headers={"authorization": ""}).status == 200, 5)
    served.process.wait(5)


def test_two_at_once_with_the_same_key(server: Byzer, serve: Callable[..., Served]) -> None:
    first, second = serve(), serve()
    first.process.send_signal(signal.SIGINT)
    eventually(lambda: not accepts(first.port), 5)
    assert second.http("GET", "/v1/models").status == 200
    assert second.http("GET", "/v1/models", key="").status == 401


def test_it_opens_again_after_a_crash_of_the_server(server: Byzer, serve: Callable[..., Served]) -> None:
    served = serve()
    pid = server.pid
    psutil.Process(pid).kill()
    assert served.process.stdout
    assert served.process.stdout.readline().strip() == served.url
    assert server.pid != pid
    assert served.http("POST", "/v1/chat/completions", CHAT).json() == ANSWER
    assert served.http("GET", "/v1/models", key="").status == 401
