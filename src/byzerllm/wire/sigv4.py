"""Signature version 4 of AWS, pure: the time is an argument.

Facts: docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass, field
from urllib.parse import quote

_ALGORITHM = "AWS4-HMAC-SHA256"
_CONTENT_TYPE = "application/json"


@dataclass(frozen=True)
class Credentials:
    """An AWS key for one service of one region; ``session_token`` comes with temporary ones."""

    access_key: str
    secret_key: str = field(repr=False)
    region: str
    service: str
    session_token: str = field(default="", repr=False)


def signed_headers(credentials: Credentials, *, host: str, path: str, body: bytes, now: float) -> dict[str, str]:
    """The headers that sign a POST of JSON, to be sent beside its ``Host`` and ``Content-Type: application/json``.

    ``host`` and ``path`` are as they stand in the request: the port included where it is sent, the path escaped and
    without a query. ``now`` is Unix time in seconds; AWS accepts a difference of five minutes.
    """
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    extra = {"X-Amz-Date": date}
    if credentials.session_token:
        extra["X-Amz-Security-Token"] = credentials.session_token
    headers = {"content-type": _CONTENT_TYPE, "host": host} | {name.lower(): value for name, value in extra.items()}
    request = canonical_request(path, headers, body)
    scope = f"{date[:8]}/{credentials.region}/{credentials.service}/aws4_request"
    text = f"{_ALGORITHM}\n{date}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signature = _hmac(_key(credentials, date[:8]), text).hex()
    names = ";".join(sorted(headers))
    extra["Authorization"] = (
        f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return extra


def canonical_request(path: str, headers: dict[str, str], body: bytes) -> str:
    """What is signed of a POST. ``headers`` has lower-case names. The escaped path is escaped once more."""
    lines = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in sorted(headers))
    digest = hashlib.sha256(body).hexdigest()
    return f"POST\n{quote(path, safe='/~')}\n\n{lines}\n{';'.join(sorted(headers))}\n{digest}"


def _key(credentials: Credentials, day: str) -> bytes:
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (day, credentials.region, credentials.service, "aws4_request"):
        key = _hmac(key, part)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
