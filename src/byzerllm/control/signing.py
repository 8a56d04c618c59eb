"""Requests that carry a signature or a token of short life: from the ``auth`` of a vendor's table to what signs them.

The formats of signatures are pure functions in ``wire/``; here they meet the clock, and what else they need.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from urllib.parse import urlencode

from byzerllm.control import tokens
from byzerllm.errors import InvalidInput
from byzerllm.providers.parse import SaasOptions
from byzerllm.relay.target import header_lines, parse_target
from byzerllm.routing.worker import Sign
from byzerllm.wire.sigv4 import Credentials, signed_headers
from byzerllm.wire.spark import signed_query

Clock = Callable[[], float]
"""Unix time in seconds."""


def signer(name: str, options: SaasOptions, clock: Clock = time.time) -> Sign | None:
    """What signs the requests of these options by the scheme of that name; None for a name that is no scheme of ours.

    Raises:
        InvalidInput: a credential is missing, or cannot be sent.
    """
    make = _SCHEMES.get(name)
    return make(options, clock) if make is not None else None


def _sigv4(options: SaasOptions, clock: Clock) -> Sign:
    """Amazon Bedrock: its API key as a bearer token where there is one, else signature version 4."""
    if options.api_key:
        bearer = {"Authorization": f"Bearer {options.api_key}"}
        header_lines(bearer)  # refuses at deploy what no header can carry

        async def send_key(path: str, body: bytes) -> tuple[str, Mapping[str, str]]:
            return path, bearer

        return send_key
    credentials = _aws_credentials(options)
    header_lines({"Authorization": credentials.access_key, "X-Amz-Security-Token": credentials.session_token})
    target, _ = parse_target(options.base_url)

    async def sign(path: str, body: bytes) -> tuple[str, Mapping[str, str]]:
        return path, signed_headers(credentials, host=target.authority, path=path, body=body, now=clock())

    return sign


def _aws_credentials(options: SaasOptions) -> Credentials:
    for name in ("aws_access_key", "aws_secret_key", "region_name"):
        if not options.params.get(name):
            raise InvalidInput(
                f"saas.{name} is missing: {options.provider.title} takes saas.api_key alone, or saas.aws_access_key, "
                "saas.aws_secret_key and saas.region_name.",
                hint=f"Add --infer_params saas.{name}=...",
                param=f"saas.{name}",
            )
    return Credentials(
        access_key=options.params["aws_access_key"],
        secret_key=options.params["aws_secret_key"],
        region=options.params["region_name"],
        service="bedrock",
        session_token=options.params.get("aws_session_token", ""),
    )


def _spark(options: SaasOptions, clock: Clock) -> Sign:
    """iFlytek Spark's websocket: the address itself is signed, for a few minutes."""
    api_secret = options.params.get("api_secret")
    if not options.api_key or not api_secret:
        missing = "api_secret" if options.api_key else "api_key"
        raise InvalidInput(f"saas.{missing} is missing: Spark's websocket needs both keys.", param=f"saas.{missing}")
    target, _ = parse_target(options.base_url)

    async def sign(path: str, body: bytes) -> tuple[str, Mapping[str, str]]:
        date = formatdate(clock(), usegmt=True)
        query = signed_query(target.authority, path, date, api_key=options.api_key, api_secret=api_secret)
        return f"{path}?{query}", {}

    return sign


def _baidu(options: SaasOptions, clock: Clock) -> Sign:
    """Baidu's former API: a token that the owner has, or one for his two keys."""
    token = options.params.get("access_token")
    if not token:
        return tokens.baidu(options, clock)
    query = urlencode({"access_token": token})

    async def sign(path: str, body: bytes) -> tuple[str, Mapping[str, str]]:
        return f"{path}?{query}", {}

    return sign


def _huawei(options: SaasOptions, clock: Clock) -> Sign | None:
    """Huawei Cloud: a user's token; without a user the owner has given a token or an AppCode as a header."""
    return tokens.huawei(options, clock) if options.params.get("iam_user") else None


# A scheme is one function above and one line here; ``providers/schema.py`` has the names.
_SCHEMES: dict[str, Callable[[SaasOptions, Clock], Sign | None]] = {
    "baidu": _baidu,
    "huawei": _huawei,
    "sigv4": _sigv4,
    "spark": _spark,
}
