"""Spark's frames in both directions, and the signature of its address."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.unit import legacy
from tests.unit.legacy import ANSWERED, HARMLESS, NOWHERE, TOOL, USER
from tests.vendors.spark import SID, error_in_answer, stream

from byzerllm.control.signing import signer
from byzerllm.errors import InvalidInput, UpstreamBroken
from byzerllm.providers.parse import SaasOptions, parse
from byzerllm.providers.registry import provider
from byzerllm.spec import DeploymentSpec
from byzerllm.wire.base import FrameTranslator, Task, Vendor
from byzerllm.wire.events import Event, Failure, Finish, Reasoning, Started, Text, Tokens, ToolCall
from byzerllm.wire.spark import Spark, signed_query

WIRE = "spark"
MODELS = provider("sparkdesk").models
CAN = frozenset(("tools", "reasoning"))


def vendor(model: str = "generalv3.5") -> Vendor:
    return Vendor(model, "Spark", {"appid": "a1"}, CAN, MODELS)


def body(model: str = "generalv3.5", **fields: Any) -> dict[str, Any]:
    return legacy.body(WIRE, vendor(model), **fields)


def frame(text: dict[str, Any] | None = None, status: int = 1, **more: Any) -> bytes:
    payload = {"choices": {"status": status, "seq": 0, "text": [text or {"content": ""}]}, **more}
    return json.dumps({"header": {"code": 0, "sid": SID, "status": status}, "payload": payload}).encode() + b"\n"


# -- the signature ----------------------------------------------------------------------------------------------------

DATE = "Fri, 05 May 2023 10:43:39 GMT"
SIGNED = (
    "authorization=YXBpX2tleT0iYXBpa2V5WFhYWCIsIGFsZ29yaXRobT0iaG1hYy1zaGEyNTYiLCBoZWFkZXJzPSJob3N0IGRhdGUgcmVxdWVzdC1s"
    "aW5lIiwgc2lnbmF0dXJlPSJjQ3VKTTl4cFdDYTdTVXF0eGlwMnNINzhmSnlVR2QvWjVuWFZTZ0Z1eVQ0PSI%3D&date=Fri%2C+05+May+2023+10%"
    "3A43%3A39+GMT&host=spark-api.xf-yun.com"
)


def test_the_signed_address() -> None:
    keys = {"api_key": "apikeyXXXX", "api_secret": "apisecretYYYY"}
    assert signed_query("spark-api.xf-yun.com", "/v3.1/chat", DATE, **keys) == SIGNED
    assert signed_query("spark-api.xf-yun.com", "/v3.1/chat", DATE, **keys, method="POST") != SIGNED


def options(**params: str) -> SaasOptions:
    named = {f"saas.{name}": value for name, value in {"wire": "spark", "appid": "a", **params}.items()}
    return parse(DeploymentSpec(name="m", pretrained_model_type="saas/sparkdesk", infer_params=named), {})


def test_the_date_is_in_gmt_whatever_the_machine_thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    sign = signer("spark", options(api_key="apikeyXXXX", api_secret="apisecretYYYY"), lambda: 1683283419.5)
    assert sign is not None
    assert asyncio.run(sign("/v3.1/chat", b"")) == (f"/v3.1/chat?{SIGNED}", {})  # type: ignore[arg-type]


def test_both_keys_are_needed() -> None:
    given = options(api_key="k", api_secret="s")
    for missing in (SaasOptions(**{**given.__dict__, "api_key": ""}), SaasOptions(**{**given.__dict__, "params": {}})):
        with pytest.raises(InvalidInput, match=r"saas\.api_(key|secret) is missing"):
            signer("spark", missing)


# -- the request ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("lite", "/v1.1/chat"), ("generalv2", "/v2.1/chat"), ("generalv3", "/v3.1/chat"), ("generalv3.5", "/v3.5/chat"),
        ("pro-128k", "/chat/pro-128k"), ("max-32k", "/chat/max-32k"), ("4.0Ultra", "/v4.0/chat"),
        ("spark-x", "/v1/x1"), ("new", "/v3.1/chat"),
    ],
)  # fmt: skip
def test_the_path_is_the_models(model: str, path: str) -> None:
    assert legacy.asked(WIRE, vendor(model)).path == path


def test_a_small_request_has_no_more_than_the_client_said() -> None:
    assert body() == {
        "header": {"app_id": "a1"},
        "parameter": {"chat": {"domain": "generalv3.5"}},
        "payload": {"message": {"text": [USER]}},
    }
    assert legacy.asked(WIRE, Vendor("m", params={"appid": "a"})).path == ""


def test_everything_that_it_has() -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER]
    sent = body(
        "spark-x", messages=messages, max_tokens=5, temperature=0.5, top_k=4, presence_penalty=0.1,
        frequency_penalty=0.2, user="u1", auditing="default", chat_id="c", tools=[TOOL], stream=True,
    )  # fmt: skip
    assert sent["header"] == {"app_id": "a1", "uid": "u1"}
    assert sent["parameter"]["chat"] == {
        "domain": "spark-x", "temperature": 0.5, "top_k": 4, "max_tokens": 5, "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "auditing": "default", "chat_id": "c",
    }  # fmt: skip
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    assert sent["payload"] == {"message": {"text": messages}, "functions": {"text": [function]}}
    assert "functions" not in body(tools=[TOOL], tool_choice="none")["payload"]


def test_a_call_and_its_result_go_back() -> None:
    assert body(messages=ANSWERED)["payload"]["message"]["text"][1:] == [
        {"role": "assistant", "content": "", "function_call": {"name": "add", "arguments": '{"a":1}'}},
        {"role": "function", "content": "3", "name": "add"},
    ]


@pytest.mark.parametrize("fields", HARMLESS, ids=str)
def test_what_asks_for_nothing_is_accepted(fields: dict[str, Any]) -> None:
    assert body(**fields) == body()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *NOWHERE,
        ({"top_p": 1.0}, "top_p"),
        ({"stop": ["x"]}, "stop"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ],
    ids=str,
)
def test_what_it_has_not_is_refused(fields: dict[str, Any], param: str | None) -> None:
    error = legacy.refused(WIRE, vendor(), **fields)
    assert "Spark has no" in error.message
    assert param is None or error.param == param


# -- the answer -------------------------------------------------------------------------------------------------------


def decoded(data: bytes) -> list[Event]:
    decoder = Spark().stream()
    return decoder.feed(data) + decoder.close()


def test_an_answer() -> None:
    script: list[Event] = [Reasoning("hm"), Text("Hi"), Text("!"), Tokens(5, 2), Finish("stop")]
    assert decoded(stream(script)) == [Started(SID), *script]
    assert Spark().events(stream(script).rstrip()) == [Started(SID), *script]


def test_a_call_whole_and_in_pieces() -> None:
    whole = decoded(stream([ToolCall(0, "", "add", '{"a":1}'), Tokens(1, 1), Finish("tool_calls")]))
    assert whole[1:] == [ToolCall(0, f"call_{SID}", "add", '{"a":1}'), Tokens(1, 1), Finish("tool_calls")]
    pieces = frame({"function_call": {"name": "add"}}) + frame({"function_call": {"arguments": "{}"}}, status=2)
    assert decoded(pieces)[1:] == [
        ToolCall(0, f"call_{SID}", "add", ""),
        ToolCall(0, arguments="{}"),
        Finish("tool_calls"),
    ]


@pytest.mark.parametrize(
    ("code", "status"),
    [("10013", 400), ("10907", 400), ("10016", 403), ("10404", 404), ("11202", 429), ("10008", 503), ("10010", 502)],
)
def test_errors(code: str, status: int) -> None:
    *_, failure = decoded(frame({"content": "a"}) + error_in_answer(code, "no") + frame({"content": "b"}))
    assert isinstance(failure, Failure)
    error = failure.error
    assert (error.status, error.vendor_code, error.message, error.request_id) == (status, int(code), "no", SID)
    assert json.loads(error.body)["header"]["code"] == int(code)


def test_an_error_without_words() -> None:
    [failure] = decoded(b'{"header":{"code":10222}}')
    assert isinstance(failure, Failure)
    assert failure.error.message == "Spark reported the error 10222."
    assert (
        Spark().error(401, {}, b'{"message":"HMAC signature does not match"}').message
        == "HMAC signature does not match"
    )


@pytest.mark.parametrize("data", [b"", b"\n", frame({"content": "a"}), b"garbage\n", b'{"payload":{}}\n'])
def test_an_answer_that_is_not_whole(data: bytes) -> None:
    failure = decoded(data)[-1]
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, UpstreamBroken)


def test_the_last_frame_is_known() -> None:
    spark = Spark()
    assert isinstance(spark, FrameTranslator)
    assert not spark.is_last(frame({"content": '"status":2'}))
    assert not spark.is_last(b'{"header":{"code":0,"status":0}}')
    assert spark.is_last(frame(status=2))
    assert spark.is_last(b'{"header":{"code":0},"payload":{"choices":{"status":2}}}')
    assert spark.is_last(error_in_answer("10013", "no"))
    assert spark.is_last(b'{"header":{"code":10013,"status":1}}')
    assert spark.is_last(b"garbage"), "nothing that follows can be trusted"


def test_it_has_chat_alone() -> None:
    assert Spark.tasks == {Task.CHAT}
