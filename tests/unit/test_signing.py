"""Which requests get which credentials; the signatures themselves are tested with their formats."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from byzerllm.control.signing import signer
from byzerllm.control.upstreams import saas_upstreams
from byzerllm.errors import InvalidInput
from byzerllm.providers.parse import SaasOptions, parse
from byzerllm.routing.worker import Sign, Translated
from byzerllm.spec import DeploymentSpec

AWS = {
    "region_name": "us-east-1",
    "aws_access_key": "AKIDEXAMPLE",
    "aws_secret_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    "model": "anthropic.claude-3-haiku-20240307-v1:0",
}
PATH = "/model/anthropic.claude-3-haiku-20240307-v1%3A0/converse"
BODY = b'{"messages":[{"role":"user","content":[{"text":"hi"}]}]}'


def options(kind: str, params: Mapping[str, str]) -> SaasOptions:
    named = {f"saas.{name}": value for name, value in params.items()}
    return parse(DeploymentSpec(name="m", pretrained_model_type=f"saas/{kind}", infer_params=named), {})


def headers_of(sign: Sign | None) -> Mapping[str, str]:
    async def once() -> Mapping[str, str]:
        assert sign is not None
        path, headers = await sign(PATH, BODY)
        assert path == PATH
        return headers

    return asyncio.run(once())


def signed(name: str, given: SaasOptions, now: float = 1767323045.0) -> Mapping[str, str]:
    return headers_of(signer(name, given, lambda: now))


def test_a_scheme_that_needs_the_key_only_has_no_signer() -> None:
    assert signer("bearer", options("openai", {"api_key": "k", "model": "x"})) is None


# sigv4


def test_aws_requests_are_signed_for_their_address_and_time() -> None:
    given = options("aws_bedrock", AWS)
    assert given.base_url == "https://bedrock-runtime.us-east-1.amazonaws.com"
    assert signed("sigv4", given) == {
        "X-Amz-Date": "20260102T030405Z",
        "Authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/us-east-1/bedrock/aws4_request, "
        "SignedHeaders=content-type;host;x-amz-date, "
        "Signature=1d46b853950ada1236d7f19ff7fa4766dda53e3e07916e6dea4affdb3c67879a",
    }
    local = options("aws_bedrock", AWS | {"base_url": "http://127.0.0.1:8000"})
    assert signed("sigv4", local)["Authorization"] != signed("sigv4", given)["Authorization"]
    assert signed("sigv4", given, 1767323046.0)["X-Amz-Date"] == "20260102T030406Z"


def test_temporary_aws_credentials() -> None:
    assert signed("sigv4", options("aws_bedrock", AWS | {"aws_session_token": "t"}))["X-Amz-Security-Token"] == "t"


def test_a_bedrock_key_goes_before_the_access_key() -> None:
    assert signed("sigv4", options("aws_bedrock", AWS | {"api_key": "abc"})) == {"Authorization": "Bearer abc"}
    alone = {"api_key": "abc", "region_name": "us-east-1", "model": "x"}
    assert signed("sigv4", options("aws_bedrock", alone)) == {"Authorization": "Bearer abc"}


@pytest.mark.parametrize("name", ["aws_access_key", "aws_secret_key"])
def test_a_missing_aws_credential_is_named(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"saas\.{name} is missing: Amazon Bedrock takes saas\.api_key alone"):
        signer("sigv4", options("aws_bedrock", {n: v for n, v in AWS.items() if n != name}))


def test_the_region_belongs_to_the_address_and_to_the_signature() -> None:
    without = {n: v for n, v in AWS.items() if n != "region_name"}
    with pytest.raises(InvalidInput, match=r"saas\.region_name is missing"):
        options("aws_bedrock", without)
    with pytest.raises(InvalidInput, match=r"saas\.region_name is missing"):
        signer("sigv4", options("aws_bedrock", without | {"base_url": "https://vpc.example"}))


@pytest.mark.parametrize("name", ["api_key", "aws_access_key", "aws_session_token"])
def test_a_credential_that_no_header_can_carry_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(InvalidInput, match="no header can carry") as refused:
        signer("sigv4", options("aws_bedrock", AWS | {name: "se\ncret"}))
    assert "cret" not in refused.value.message


def test_the_older_tools_version_of_the_models_api_is_accepted() -> None:
    given = options("aws_bedrock", AWS | {"model_api_version": "bedrock-2023-05-31"})
    assert "model_api_version" in given.warnings[0]


def test_an_upstream_signs_with_each_of_the_keys() -> None:
    found = saas_upstreams(options("aws_bedrock", AWS | {"api_key": "a,b"}), "https://x.example")
    sent = [headers_of(u.sign)["Authorization"] for u in found if isinstance(u, Translated)]
    assert sent == ["Bearer a", "Bearer b"]
