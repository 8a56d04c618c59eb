"""Base URLs as targets: host, port, path, proxy."""

from __future__ import annotations

from pathlib import Path

import certifi
import pytest

from byzerllm.errors import InvalidInput
from byzerllm.relay.target import Target, parse_target, proxy_authorization, tls_context


@pytest.mark.parametrize(
    ("url", "target", "path", "authority"),
    [
        ("https://api.openai.com/v1", Target(True, "api.openai.com", 443), "/v1", "api.openai.com"),
        ("http://Host", Target(False, "host", 80), "", "host"),
        ("http://host:80/", Target(False, "host", 80), "", "host"),
        ("https://host:80/a/v1/", Target(True, "host", 80), "/a/v1", "host:80"),
        ("http://[::1]:8000/v1", Target(False, "::1", 8000), "/v1", "[::1]:8000"),
        ("https://[2001:db8::1]", Target(True, "2001:db8::1", 443), "", "[2001:db8::1]"),
        ("https://bücher.example/v1", Target(True, "xn--bcher-kva.example", 443), "/v1", "xn--bcher-kva.example"),
        ("https://h/模型 x/%20/v1beta:1", Target(True, "h", 443), "/%E6%A8%A1%E5%9E%8B%20x/%20/v1beta:1", "h"),
    ],
)
def test_an_address(url: str, target: Target, path: str, authority: str) -> None:
    assert parse_target(url) == (target, path)
    assert target.authority == authority
    assert target.connect_address == (target.host, target.port)
    assert str(target) == f"http{'s' if target.tls else ''}://{authority}"


@pytest.mark.parametrize(
    "url",
    ["", "host", "ftp://host", "http://", "http://:80", "http://h:port", "http://h:99999", "http://[::1", "http://a..b",
     "http://ü..b", f"http://{'a' * 64}.example"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"is no http\(s\) address"):
        parse_target(url)


def test_through_a_proxy() -> None:
    target, _ = parse_target("https://h/v1", proxy="http://me:p%40ss@proxy:3128", local_address="10.0.0.1", ca_file="c")
    assert (target.connect_address, target.local_address, target.ca_file) == (("proxy", 3128), "10.0.0.1", "c")
    assert str(target) == "https://h through the proxy proxy:3128", "the message has no password"
    assert proxy_authorization(target.proxy) == b"Proxy-Authorization: Basic bWU6cEBzcw==\r\n"
    assert parse_target("http://h", proxy="http://proxy")[0].connect_address == ("proxy", 80)


def test_a_proxy_with_and_without_a_password() -> None:
    assert proxy_authorization("http://proxy:3128") == b""
    assert proxy_authorization("http://me@proxy:3128") == b"Proxy-Authorization: Basic bWU6\r\n"


@pytest.mark.parametrize(
    "proxy",
    ["proxy:3128", "socks5://u:secret@proxy:1", "https://proxy", "http://", "http://u:secret@proxy:port",
     "http://proxy:0", "http://u:secret@[::1"],
)  # fmt: skip
def test_a_proxy_that_cannot_be_used_is_refused_without_repeating_its_password(proxy: str) -> None:
    with pytest.raises(InvalidInput, match="only http://host:port is known") as refused:
        parse_target("http://h", proxy=proxy)
    assert refused.value.param == "saas.proxies"
    assert "secret" not in str(refused.value)


def test_certificate_authorities(tmp_path: Path) -> None:
    plain = tls_context("")
    assert tls_context("") is plain
    assert plain.get_ca_certs()
    own = tmp_path / "ca.pem"
    own.write_text(Path(certifi.where()).read_text())
    assert tls_context(str(own)) is not plain
    own.with_name("empty.pem").write_text("no certificate")
    for name in ("missing.pem", "empty.pem"):
        with pytest.raises(InvalidInput, match=rf"saas\.ca_file=.*{name}: \S+") as refused:
            tls_context(str(own.with_name(name)))
        assert refused.value.param == "saas.ca_file"
