"""Upstreams behind TLS with a private authority, behind an HTTP proxy, and behind both; and the local address."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest
from tests.between import Authority, Proxy, Secured
from tests.fakes import FakeUpstream, black_hole, json_reply, sse_reply
from tests.gateway import ANSWER, delta, deploy, detail, post, undeploy
from tests.harness import Byzer, eventually, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def vendor(upstream: FakeUpstream) -> FakeUpstream:
    upstream.default = json_reply(ANSWER)
    return upstream


@pytest.fixture
def secured(authority: Authority, vendor: FakeUpstream) -> Iterator[Secured]:
    with Secured(authority, vendor) as secured:
        yield secured


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


@pytest.fixture
def place(server: Byzer, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """Deploys for this test alone; returns the name."""
    name = "tls"

    def deploy_it(url: str, **params: object) -> str:
        deploy(server, name, url, None, max_retries=0, **params)
        return name

    yield deploy_it
    undeploy(server, name)


def error_of(server: Byzer, model: str, status: int) -> str:
    answer = post(server, model)
    assert answer.status == status, answer.body
    message: str = answer.json()["error"]["message"]
    return message


# -- TLS ------------------------------------------------------------------------------------------------------------


def test_a_private_authority(server: Byzer, secured: Secured, authority: Authority, place: Callable[..., str]) -> None:
    model = place(secured.url, ca_file=authority.ca)
    for _ in range(3):
        assert post(server, model).json() == ANSWER
    assert len(secured.peers) == 1  # the connection is kept


def test_a_stream_over_tls(
    server: Byzer, secured: Secured, authority: Authority, vendor: FakeUpstream, place: Callable[..., str]
) -> None:
    model = place(secured.url, ca_file=authority.ca)
    events = [delta("x" * 10_000) for _ in range(100)]
    vendor.script(sse_reply(*events, delta("", "stop")))
    assert post(server, model, stream=True).body.count(b"data: ") == 102


def test_an_unknown_authority_is_refused(
    server: Byzer, secured: Secured, vendor: FakeUpstream, place: Callable[..., str]
) -> None:
    message = error_of(server, place(secured.url), 502)
    assert "certificate" in message
    assert "saas.ca_file" in message
    assert not vendor.requests


def test_a_certificate_for_another_name_is_refused(
    server: Byzer, secured: Secured, authority: Authority, vendor: FakeUpstream, place: Callable[..., str]
) -> None:
    model = place(f"https://127.0.0.2:{secured.port}", ca_file=authority.ca)
    assert "127.0.0.2" in error_of(server, model, 502)
    assert not vendor.requests


def test_tls_to_a_server_that_speaks_none(server: Byzer, vendor: FakeUpstream, place: Callable[..., str]) -> None:
    assert "https://" in error_of(server, place(vendor.url.replace("http:", "https:"), connect_timeout=1), 504)


def test_plain_http_to_a_tls_port(server: Byzer, secured: Secured, place: Callable[..., str]) -> None:
    error_of(server, place(secured.url.replace("https:", "http:")), 502)


@pytest.mark.parametrize("content", [None, b"", b"no certificate"], ids=["missing", "empty", "garbage"])
def test_an_authority_file_that_cannot_be_used_fails_the_deploy(
    server: Byzer, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    words = ("saas.api_key=k", "saas.model=m", "saas.base_url=https://localhost:1/v1", f"saas.ca_file={path}")
    kind = ("--pretrained_model_type", "saas/openai")
    done = server.run("deploy", "--model", "no", *kind, "--infer_params", *words, code=None)
    assert done.returncode in (1, 2)
    assert "ca_file" in done.stderr
    assert str(path) in done.stderr


# -- a proxy --------------------------------------------------------------------------------------------------------


def test_plain_http_goes_through_the_proxy_with_the_whole_address(
    server: Byzer, vendor: FakeUpstream, proxy: Proxy, place: Callable[..., str]
) -> None:
    model = place(vendor.url, proxies=proxy.url)
    for _ in range(2):
        assert post(server, model).json() == ANSWER
    assert proxy.asked[0].line == f"POST {vendor.url}/v1/chat/completions HTTP/1.1"
    assert proxy.asked[0].headers["host"] == f"127.0.0.1:{vendor.port}"
    assert "proxy-authorization" not in proxy.asked[0].headers


def test_https_goes_through_a_tunnel(
    server: Byzer, secured: Secured, authority: Authority, vendor: FakeUpstream, proxy: Proxy, place: Callable[..., str]
) -> None:
    model = place(secured.url, proxies=proxy.url, ca_file=authority.ca)
    for _ in range(2):
        assert post(server, model).json() == ANSWER
    assert [asked.line for asked in proxy.asked] == [f"CONNECT localhost:{secured.port} HTTP/1.1"]
    assert "authorization" not in proxy.asked[0].headers  # the vendor's key is not for the proxy
    assert vendor.requests[0].path == "/v1/chat/completions"


@pytest.mark.parametrize("tls", [False, True])
def test_the_proxys_credentials(
    server: Byzer,
    secured: Secured,
    authority: Authority,
    vendor: FakeUpstream,
    proxy: Proxy,
    tls: bool,
    place: Callable[..., str],
) -> None:
    proxy.credentials = "user:secret"
    model = place(secured.url if tls else vendor.url, proxies=proxy.url, ca_file=authority.ca)
    assert post(server, model).json() == ANSWER
    assert "secret" not in server.run("list").stdout
    proxy.credentials = "user:changed"
    undeploy(server, model)
    model = place(
        secured.url if tls else vendor.url, proxies=proxy.url.replace("changed", "wrong"), ca_file=authority.ca
    )
    answer = post(server, model)
    assert answer.status in (407, 502)
    assert "407" in answer.body.decode()
    assert "wrong" not in answer.body.decode() + server.log_tail()


@pytest.mark.parametrize(
    ("say", "status", "expected"),
    [
        (b"", 403, "refused the connection with status 403"),
        (b"", 502, "refused the connection with status 502"),
        (b"garbage\r\n\r\n", 200, "refused the connection"),
        (b"HTTP/1.1 200", 200, "closed the connection"),
        (b"x" * 100_000, 200, "refused the connection"),
    ],
    ids=["403", "502", "garbage", "half an answer", "endless"],
)
def test_a_proxy_that_refuses(
    server: Byzer, proxy: Proxy, say: bytes, status: int, expected: str, place: Callable[..., str]
) -> None:
    proxy.say, proxy.status = say, status
    message = error_of(server, place("https://vendor.example", proxies=proxy.url), 502)
    assert expected in message
    assert f"through the proxy 127.0.0.1:{proxy.port}" in message


def test_a_proxy_that_is_not_there(server: Byzer, place: Callable[..., str]) -> None:
    port = free_port()
    message = error_of(server, place("https://vendor.example", proxies=f"http://user:secret@127.0.0.1:{port}"), 502)
    assert f"127.0.0.1:{port}: connection refused" in message
    assert "secret" not in message


def test_a_proxy_that_never_answers(server: Byzer, place: Callable[..., str]) -> None:
    with black_hole() as hole:
        message = error_of(server, place("https://vendor.example", proxies=hole, connect_timeout=0.2), 504)
    assert "no connection within 0.2 s" in message
    assert detail(server, "tls")["errors"] == {"upstream_timeout": 1}


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1080", "127.0.0.1:3128", "http://", "http://host:notaport"])
def test_a_proxy_that_cannot_be_used_is_refused_at_deploy(server: Byzer, value: str) -> None:
    words = ("saas.api_key=k", "saas.model=m", "saas.base_url=http://127.0.0.1:1/v1", f"saas.proxies={value}")
    kind = ("--pretrained_model_type", "saas/openai", "--no_verify")
    done = server.run("deploy", "--model", "no", *kind, "--infer_params", *words, code=2)
    assert "http://" in done.stderr
    assert "no" not in [row["name"] for row in server.json("list")]


# -- the local address ----------------------------------------------------------------------------------------------


def test_the_local_address(server: Byzer, secured: Secured, authority: Authority, place: Callable[..., str]) -> None:
    model = place(secured.url, ca_file=authority.ca, local_address="127.0.0.9")
    assert post(server, model).json() == ANSWER
    eventually(lambda: secured.peers)
    assert secured.peers == ["127.0.0.9"]


def test_a_local_address_that_is_not_ours(server: Byzer, vendor: FakeUpstream, place: Callable[..., str]) -> None:
    address = ipaddress.ip_address("192.0.2.1")  # for documentation: nobody has it
    message = error_of(server, place(vendor.url, local_address=address), 502)
    assert str(vendor.port) in message
    assert not vendor.requests
