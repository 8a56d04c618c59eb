"""What can be checked of a SaaS instance at deploy without costing a token: address, key and model."""

from __future__ import annotations

import msgspec

from byzerllm.control.signing import signer
from byzerllm.control.tokens import Token
from byzerllm.control.upstreams import models_requests
from byzerllm.errors import DeploymentFailed, UpstreamError
from byzerllm.providers.parse import SaasOptions
from byzerllm.relay.pool import Pool
from byzerllm.relay.target import Target
from byzerllm.spec import Timeouts, nearest
from byzerllm.wire import known_format
from byzerllm.wire.base import BAD_JSON

_LIMIT = 8 * 1024 * 1024
_TIMEOUTS = Timeouts(connect=10, first_byte=20, idle=20, total=30)
_SKIP = "--no_verify deploys without this check."


async def verify_saas(pool: Pool, options: SaasOptions, base_url: str) -> list[str]:
    """Ask the vendor for its models, with each of the keys; returns warnings about what could not be checked.

    Raises:
        DeploymentFailed: the vendor refuses a key, does not know the model or is not at that address, in its words.
    """
    if not options.provider.models_path:
        return await _verify_token(options)
    keyed = options.per_key()
    warnings: list[str] = []
    for number, own in enumerate(keyed, 1):
        key = "saas.api_key" if len(keyed) == 1 else f"key {number} of {len(keyed)} in saas.api_key"
        warnings += await _verify_key(pool, own, base_url, key)
    return list(dict.fromkeys(warnings))


async def _verify_token(options: SaasOptions) -> list[str]:
    """Where there is no list of models but a token to fetch, that tells about the keys."""
    title = options.provider.title
    for own in options.per_key():
        sign = signer(own.provider.auth, own)
        if not isinstance(sign, Token):
            return [f"{title} has no free call: key and model were not checked."]
        try:
            await sign.get()
        except UpstreamError as error:
            raise DeploymentFailed(error.message, hint=error.hint or _SKIP) from None
    return [f"{title} has no list of models: the model was not checked."]


async def _verify_key(pool: Pool, options: SaasOptions, base_url: str, key: str) -> list[str]:
    target, requests = models_requests(options, base_url)
    where = f"saas.base_url={options.base_url}"
    path, request = requests[0]
    status, headers, body = await _get(pool, target, request, where)
    models = model_ids(body) if status == 200 else None
    if models is not None:
        return _check_model(options, models)
    error = known_format(options.provider.wire).error(status, headers, body)
    error.hide(options.secrets())
    if error.status not in (401, 403, 429) and len(requests) > 1:
        status_v1, _, body_v1 = await _get(pool, target, requests[1][1], where)
        if status_v1 in (401, 403) or (status_v1 == 200 and model_ids(body_v1) is not None):
            raise DeploymentFailed(
                f"{where} has no API (GET {path}: {status}), but there is one under /v1.",
                hint=f"Use saas.base_url={options.base_url}/v1",
                param="saas.base_url",
            )
    return _check_status(error, where, path, key)


async def _get(pool: Pool, target: Target, request: bytes, where: str) -> tuple[int, dict[str, str], bytes]:
    try:
        connection = await pool.exchange(target, request, _TIMEOUTS)
        try:
            body = await connection.read_all(_LIMIT)
            answer_headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in connection.headers}
            return connection.status, answer_headers, body
        finally:
            pool.give_back(connection)
    except UpstreamError as error:
        raise DeploymentFailed(
            f"{where} cannot be reached: {error.message}", hint=error.hint or _SKIP, param="saas.base_url"
        ) from None


def model_ids(body: bytes) -> list[str] | None:
    """The ids of a model list, OpenAI's ``data``, Gemini's ``models`` or Azure's voices; None when it is none."""
    try:
        value = msgspec.json.decode(body)
    except BAD_JSON:
        return None
    models = value.get("data", value.get("models")) if isinstance(value, dict) else value
    if not isinstance(models, list):
        return None
    found = [m.get("id") or m.get("name") or m.get("ShortName") for m in models if isinstance(m, dict)]
    return [str(name) for name in found if name]


def _check_model(options: SaasOptions, models: list[str]) -> list[str]:
    wanted = options.model
    if not models:
        return [f"The vendor lists no models: {wanted!r} was not checked."]
    if any(wanted in (m, m.removeprefix("models/"), m.partition(":")[0]) for m in models):
        return []
    if not options.provider.models_complete:
        return [f"The vendor's list of models does not have {wanted!r}, but the list need not be complete."]
    close = nearest(wanted, models)
    shown = ", ".join(sorted(models)[:20]) + (", ..." if len(models) > 20 else "")
    raise DeploymentFailed(
        f"The vendor does not list the model {wanted!r}. It lists: {shown}.",
        hint=f"Did you mean saas.model={close}? {_SKIP}" if close else _SKIP,
        param="saas.model",
    )


def _check_status(error: UpstreamError, where: str, path: str, key: str) -> list[str]:
    if error.status in (401, 403):
        raise DeploymentFailed(
            f"The vendor refused {key} with {error.status}: {error.message}", hint=_SKIP, param="saas.api_key"
        )
    if error.status in (404, 405, 429, 501):
        return [f"GET {path} answered {error.status}: key and model were not checked."]
    if error.status == 200:
        raise DeploymentFailed(
            f"{where}: GET {path} answered with what is no model list. Is it the API's address?",
            hint=_SKIP,
            param="saas.base_url",
        )
    raise DeploymentFailed(f"{where}: GET {path} answered {error.status}: {error.message}", hint=_SKIP)
