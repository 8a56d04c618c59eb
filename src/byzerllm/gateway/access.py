"""Who may call: API keys, the admin token, and the Host and Origin of requests that carry neither."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections import Counter
from collections.abc import Iterable
from urllib.parse import urlsplit

from byzerllm.errors import AuthenticationFailed, Forbidden

_BEARER = b"bearer "


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Keys:
    """The API keys that are valid now, as hashes, and the admin token. A key added twice is removed twice."""

    def __init__(self, token: str) -> None:
        self._token = _digest(token.encode())
        self._keys: Counter[bytes] = Counter()

    @property
    def required(self) -> bool:
        """Whether ``/v1`` needs a key: as soon as there is one."""
        return bool(self._keys)

    def add(self, key: str) -> None:
        self._keys[_digest(key.encode())] += 1

    def remove(self, key: str) -> None:
        digest = _digest(key.encode())
        self._keys[digest] -= 1
        if self._keys[digest] <= 0:
            del self._keys[digest]

    def knows(self, key: bytes) -> bool:
        """An API key, or the admin token, which opens everything."""
        digest = _digest(key)
        return digest in self._keys or hmac.compare_digest(digest, self._token)

    def is_admin(self, key: bytes) -> bool:
        return hmac.compare_digest(_digest(key), self._token)


class Access:
    """The rule of every listener. ``always`` is for one that other machines reach: it needs a key even if none is set,
    which leaves the admin token."""

    def __init__(self, keys: Keys, *, always: bool = False) -> None:
        self._keys = keys
        self._always = always
        self._known: dict[bytes, bool] = {}  # Host and Origin values seen before

    def check_api(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """For ``/v1``: a known key, or, while none is set, a request that no foreign web page can have made.

        Raises:
            AuthenticationFailed: a key is needed, or the given one is not known.
            Forbidden: Host or Origin is foreign.
        """
        key = host = origin = None
        for name, value in headers:
            if name == b"authorization":
                key = value
            elif name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        if self._always or self._keys.required:
            if key is None:
                raise AuthenticationFailed("This server needs an API key.", hint="Send Authorization: Bearer <key>.")
            if not self._keys.knows(_token_of(key)):
                raise AuthenticationFailed("The API key is not known here.")
        elif not self._local(host, origin) and not (key is not None and self._keys.knows(_token_of(key))):
            raise Forbidden(
                "The request's Host or Origin is foreign and no API key is set.",
                hint="`byzerllm serve --api_key KEY` opens the API to others.",
            )

    def check_admin(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """For ``/admin``: the token of ``server.json``.

        Raises:
            AuthenticationFailed: another or none.
        """
        for name, value in headers:
            if name == b"authorization" and self._keys.is_admin(_token_of(value)):
                return
        raise AuthenticationFailed("The admin API needs the token of $BYZERLLM_HOME/server.json.")

    def _local(self, host: bytes | None, origin: bytes | None) -> bool:
        return (host is None or self._is_local(host)) and (origin is None or self._is_local(origin))

    def _is_local(self, value: bytes) -> bool:
        known = self._known.get(value)
        if known is None:
            if len(self._known) > 1000:
                self._known.clear()
            text = value.decode("latin-1")
            try:
                name = urlsplit(text if "://" in text else f"//{text}").hostname
            except ValueError:
                name = None
            known = self._known[value] = bool(name) and is_loopback(name or "")
        return known


def _token_of(authorization: bytes) -> bytes:
    if authorization[:7].lower() == _BEARER:
        return authorization[7:].strip()
    return authorization.strip()
