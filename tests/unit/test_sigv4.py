"""AWS's signature: the published vector, and what each part of a request does to it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from byzerllm.wire.sigv4 import Credentials, canonical_request, signed_headers

KEY = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "us-east-1", "bedrock")
HOST = "bedrock-runtime.us-east-1.amazonaws.com"
PATH = "/model/anthropic.claude-3-haiku-20240307-v1%3A0/converse"
BODY = b'{"messages":[{"role":"user","content":[{"text":"hi"}]}]}'
NOW = 1767323045.9  # 2026-01-02T03:04:05Z
HEADERS = {"content-type": "application/json", "host": HOST, "x-amz-date": "20260102T030405Z"}


def test_the_published_canonical_request() -> None:
    found = canonical_request(PATH, HEADERS, BODY)
    assert found.split("\n")[:3] == ["POST", "/model/anthropic.claude-3-haiku-20240307-v1%253A0/converse", ""]
    assert found.endswith("\nc3335e07d6e89650bf94cb98664be69f8774dbc3198df221f113db0a59ea14f0")
    digest = hashlib.sha256(found.encode()).hexdigest()
    assert digest == "9877d8eba6c3f18f057d931b49eff63c12ff3f65c0958506a6715c6e872e1b96"


def test_the_published_signature() -> None:
    assert signed_headers(KEY, host=HOST, path=PATH, body=BODY, now=NOW) == {
        "X-Amz-Date": "20260102T030405Z",
        "Authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/us-east-1/bedrock/aws4_request, "
        "SignedHeaders=content-type;host;x-amz-date, "
        "Signature=1d46b853950ada1236d7f19ff7fa4766dda53e3e07916e6dea4affdb3c67879a",
    }


def test_a_session_token_is_sent_and_signed() -> None:
    found = signed_headers(replace(KEY, session_token="tok/en=="), host=HOST, path=PATH, body=BODY, now=NOW)
    assert found["X-Amz-Security-Token"] == "tok/en=="
    assert "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token," in found["Authorization"]


def test_everything_counts() -> None:
    def signature(
        key: Credentials = KEY, host: str = HOST, path: str = PATH, body: bytes = BODY, now: float = NOW
    ) -> str:
        return signed_headers(key, host=host, path=path, body=body, now=now)["Authorization"].rpartition("=")[2]

    others = [
        signature(replace(KEY, secret_key="x")),
        signature(replace(KEY, region="eu-west-1")),
        signature(replace(KEY, service="other")),
        signature(replace(KEY, session_token="x")),
        signature(host=f"{HOST}:8443"),
        signature(path=PATH + "-stream"),
        signature(body=BODY + b" "),
        signature(now=NOW + 1),
    ]
    assert len({signature(), *others}) == 9


def test_the_secrets_are_not_shown() -> None:
    shown = repr(replace(KEY, session_token="tok"))
    assert KEY.secret_key not in shown
    assert "tok" not in shown
