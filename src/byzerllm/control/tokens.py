"""Tokens of short life that are fetched with lasting credentials: Baidu's from its two keys, Huawei's from a user."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

import msgspec

from byzerllm.errors import InvalidInput, UpstreamBroken, UpstreamError
from byzerllm.providers.parse import SaasOptions
from byzerllm.relay.pool import Pool
from byzerllm.relay.target import Target, header_lines, parse_target, request_head, standard_headers
from byzerllm.spec import Timeouts
from byzerllm.wire.base import BAD_JSON
from byzerllm.wire.openai import parse_error

_MARGIN = 300.0  # seconds before its end from which a token is not used any more
_TIMEOUTS = Timeouts(connect=10, first_byte=20, idle=20, total=30)
_LIMIT = 1024 * 1024
_DAY = 86_400.0


@dataclass(frozen=True)
class Issuer:
    """Where a token comes from and where it goes. ``read`` has a good answer's headers and body, and gives the token
    and the seconds it lasts, or None; ``place`` is as ``Sign`` but for the token; ``is_expired`` knows the vendor's
    ways to say so."""

    target: Target
    request: bytes
    read: Callable[[Mapping[str, str], bytes], tuple[str, float] | None]
    place: Callable[[str, str], tuple[str, Mapping[str, str]]]
    is_expired: Callable[[UpstreamError], bool]


class Token:
    """Signs requests with a token (``Sign``) that is fetched when it is first needed and when it comes to its end.

    ``clock`` gives Unix time in seconds.
    """

    def __init__(self, issuer: Issuer, clock: Callable[[], float]) -> None:
        self._issuer = issuer
        self._clock = clock
        self._fetching = asyncio.Lock()
        self._token = ""
        self._until = 0.0

    async def __call__(self, path: str, body: bytes) -> tuple[str, Mapping[str, str]]:
        return self._issuer.place(path, await self.get())

    async def get(self) -> str:
        """The token; of those who wait for a new one, one fetches it.

        Raises:
            UpstreamError: the issuer refuses the credentials, in its words, or cannot be reached.
        """
        async with self._fetching:
            if not self._token or self._clock() >= self._until:
                now = self._clock()
                self._token, lifetime = await self._fetch()
                self._until = now + lifetime - _MARGIN
            return self._token

    def renew(self, error: UpstreamError) -> bool:
        """Forget the token if the vendor says that it has expired (``Renew``)."""
        expired = self._issuer.is_expired(error)
        if expired:
            self._token = ""
        return expired

    async def _fetch(self) -> tuple[str, float]:
        target = self._issuer.target
        pool = Pool()  # of its own: a token is fetched once a day at most
        try:
            connection = await pool.exchange(target, self._issuer.request, _TIMEOUTS)
            try:
                body = await connection.read_all(_LIMIT)
            finally:
                connection.abort()
        finally:
            pool.close()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in connection.headers}
        found = self._issuer.read(headers, body) if connection.status in (200, 201) else None
        if found is not None:
            return found
        error = parse_error(connection.status, headers, body)
        if error.status < 400:
            raise UpstreamBroken(f"{target} gave no token: {error.message}")
        error.message = f"{target} gave no token: {error.message}"
        raise error


class _Granted(msgspec.Struct):
    access_token: str
    expires_in: float


def baidu(options: SaasOptions, clock: Callable[[], float]) -> Token:
    """The token that Baidu's former API wants in the query, from its access key and secret key.

    Raises:
        InvalidInput: one of them is missing.
    """
    for name, value in (("api_key", options.api_key), ("secret_key", options.params.get("secret_key"))):
        if not value:
            raise InvalidInput(
                f"saas.{name} is missing: this API takes saas.access_token alone, or saas.api_key and saas.secret_key.",
                hint=f"Add --infer_params saas.{name}=...",
                param=f"saas.{name}",
            )
    target, _ = _target(options, options.base_url)
    query = urlencode(
        {
            "grant_type": "client_credentials",
            "client_id": options.api_key,
            "client_secret": options.params["secret_key"],
        }
    )

    def read(headers: Mapping[str, str], body: bytes) -> tuple[str, float] | None:
        try:
            granted = msgspec.json.decode(body, type=_Granted)
        except BAD_JSON:
            return None
        return granted.access_token, granted.expires_in

    return Token(
        Issuer(
            target=target,
            request=_post(target, f"/oauth/2.0/token?{query}", b""),
            read=read,
            place=lambda path, token: (f"{path}{'&' if '?' in path else '?'}{urlencode({'access_token': token})}", {}),
            is_expired=lambda error: error.vendor_code in (110, 111),
        ),
        clock,
    )


def huawei(options: SaasOptions, clock: Callable[[], float]) -> Token:
    """The token of Huawei Cloud's IAM for a user of an account, for one project (a region, in their sense).

    Raises:
        InvalidInput: a part of the credentials is missing, or the address of IAM is none.
    """
    given = {name: options.params.get(name, "") for name in ("iam_user", "iam_password", "iam_domain", "iam_project")}
    for name, value in given.items():
        if not value:
            raise InvalidInput(f"saas.{name} is missing: saas.iam_user needs it.", param=f"saas.{name}")
    target, path = _target(options, options.params["iam_url"])
    user = {"name": given["iam_user"], "password": given["iam_password"], "domain": {"name": given["iam_domain"]}}
    identity = {"methods": ["password"], "password": {"user": user}}
    scope = {"project": {"name": given["iam_project"]}}
    body = msgspec.json.encode({"auth": {"identity": identity, "scope": scope}})

    def read(headers: Mapping[str, str], body: bytes) -> tuple[str, float] | None:
        token = headers.get("x-subject-token")
        return (token, _DAY) if token else None

    return Token(
        Issuer(
            target=target,
            request=_post(target, f"{path}/v3/auth/tokens", body),
            read=read,
            place=lambda path, token: (path, {"X-Auth-Token": token}),
            is_expired=lambda error: error.status == 401,
        ),
        clock,
    )


def _target(options: SaasOptions, url: str) -> tuple[Target, str]:
    return parse_target(url, proxy=options.proxy, local_address=options.local_address, ca_file=options.ca_file)


def _post(target: Target, path: str, body: bytes) -> bytes:
    lines = header_lines({**standard_headers(target), "Content-Type": "application/json"})
    return request_head("POST", target, path, lines) + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
