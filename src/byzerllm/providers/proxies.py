"""The proxy that the environment names for an address."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed has it for macOS only

from byzerllm.errors import InvalidInput


def environment_proxy(url: str, environ: Mapping[str, str]) -> str:
    """The proxy's URL, from HTTPS_PROXY, HTTP_PROXY and NO_PROXY (or their lower-case forms, which go first), or "".
    This machine itself is never reached through one.

    Raises:
        InvalidInput: the variable names a proxy of another kind than HTTP.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    kind = {"https": "https", "wss": "https", "http": "http", "ws": "http"}.get(parts.scheme)
    if kind is None or _is_loopback(host):
        return ""
    name = next((n for n in (f"{kind}_proxy", f"{kind}_proxy".upper()) if environ.get(n)), None)
    bypass = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    if name is None or proxy_bypass_environment(parts.netloc, {"no": bypass}):
        return ""
    proxy = environ[name] if "://" in environ[name] else f"http://{environ[name]}"
    if not proxy.startswith("http://"):
        raise InvalidInput(
            f"{name} names a proxy that cannot be used: only http://host:port is known.",
            hint=f"NO_PROXY={host} in the server's environment, or an empty saas.proxies=, goes without it.",
            param="saas.proxies",
        )
    return proxy.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
