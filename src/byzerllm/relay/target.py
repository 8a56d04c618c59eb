"""Where upstream connections go: one frozen value that also is the key of the connection pool."""

from __future__ import annotations

import base64
import functools
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

import certifi

from byzerllm import __version__
from byzerllm.errors import InvalidInput

_PATH = "/%!$&'()*+,;=:@"  # what may stand in a path as it is (RFC 3986, 3.3), escapes included


@dataclass(frozen=True)
class Target:
    """One address as seen from this machine; connections to equal targets are shared.

    ``proxy`` is the URL of an HTTP proxy, credentials included, or "".
    """

    tls: bool
    host: str
    port: int
    proxy: str = field(default="", repr=False)
    local_address: str = ""
    ca_file: str = ""

    @property
    def authority(self) -> str:
        """Host and port as in a ``Host`` header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def connect_address(self) -> tuple[str, int]:
        """Host and port to open the socket to: the proxy's where there is one."""
        if not self.proxy:
            return self.host, self.port
        parts = urlsplit(self.proxy)
        return parts.hostname or "", parts.port or 80

    def __str__(self) -> str:
        via = f" through the proxy {':'.join(map(str, self.connect_address))}" if self.proxy else ""
        return f"{'https' if self.tls else 'http'}://{self.authority}{via}"


def parse_target(url: str, *, proxy: str = "", local_address: str = "", ca_file: str = "") -> tuple[Target, str]:
    """A base URL as its target and the path under which the API lies (no trailing slash).

    Raises:
        InvalidInput: the URL or the proxy is not usable.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError as error:  # half an IPv6 address, a port that is none, a name that DNS cannot hold
        raise InvalidInput(f"{url!r} is no http(s) address: {error}.") from None
    if parts.scheme not in ("http", "https", "ws", "wss") or not host:
        raise InvalidInput(f"{url!r} is no http(s) address.")
    if proxy:
        _check_proxy(proxy)
    tls = parts.scheme in ("https", "wss")
    target = Target(tls, host, port or (443 if tls else 80), proxy, local_address, ca_file)
    return target, quote(parts.path.rstrip("/"), safe=_PATH)


def _check_proxy(proxy: str) -> None:
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:  # as above
        usable = False
    if not usable:  # the message does not repeat it: it may hold a password
        raise InvalidInput("The proxy cannot be used: only http://host:port is known.", param="saas.proxies")


def proxy_authorization(proxy: str) -> bytes:
    """The ``Proxy-Authorization`` header line of a proxy URL with credentials, or nothing."""
    parts = urlsplit(proxy)
    if not parts.username:
        return b""
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return b"Proxy-Authorization: Basic " + base64.b64encode(pair) + b"\r\n"


@functools.lru_cache(maxsize=32)
def tls_context(ca_file: str) -> ssl.SSLContext:
    """The system's authorities, certifi's and those of ``ca_file``. Reads files: call it from a thread.

    Raises:
        InvalidInput: ``ca_file`` cannot be read or holds no certificate.
    """
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise InvalidInput(f"saas.ca_file={ca_file}: {error.strerror or error}.", param="saas.ca_file") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def request_head(method: str, target: Target, path: str, header_lines: bytes) -> bytes:
    """A request's first line and headers, without the empty line. Through a plain proxy the line has the address."""
    line = f"{method} {path} HTTP/1.1\r\n"
    if target.proxy and not target.tls:
        line = f"{method} http://{target.authority}{path} HTTP/1.1\r\n"
        header_lines += proxy_authorization(target.proxy)
    return line.encode("ascii") + header_lines


def standard_headers(target: Target) -> dict[str, str]:
    """What every request has."""
    return {"Host": target.authority, "User-Agent": f"byzerllm/{__version__}", "Accept": "*/*"}


def merged(*layers: Mapping[str, str]) -> dict[str, str]:
    """Headers of which later layers go before; names are the same in any case."""
    found = {name.lower(): (name, value) for layer in layers for name, value in layer.items()}
    return dict(found.values())


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Headers as they stand in a request, each line ended.

    Raises:
        InvalidInput: a value that no header can carry; the message does not show it.
    """
    for name, value in headers.items():
        if not value.isascii() or not value.isprintable():
            raise InvalidInput(f"The value for the header {name} has characters that no header can carry.", param=name)
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("ascii")
