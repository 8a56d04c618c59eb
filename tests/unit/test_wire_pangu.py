"""Pangu's two forms: one text for a private gateway, messages for a deployment of the cloud."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit import legacy
from tests.unit.legacy import HARMLESS, NOWHERE, USER
from tests.vendors.pangu import ANSWER_ID, answer, gateway_answer, stream

from byzerllm.errors import UpstreamBroken
from byzerllm.wire.base import Vendor
from byzerllm.wire.events import Event, Failure, Finish, Started, Text, Tokens
from byzerllm.wire.pangu import Pangu

WIRE = "pangu"
GATEWAY = Vendor("pangu-nlp-71b", "Pangu")
CLOUD = Vendor("pangu-nlp-71b", "Pangu", params={"project_id": "p/1", "deployment_id": "d1"})
POOLED = Vendor("m", "Pangu", params={"project_id": "p1", "pool_id": "q1", "deployment_id": "d1"})


def decoded(*events: str) -> list[Event]:
    decoder = Pangu().stream()
    return decoder.feed("".join(f"{e}\n\n" for e in events).encode()) + decoder.close()


def test_a_gateway_gets_one_text() -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "hello"}, USER]
    sent = legacy.asked(WIRE, GATEWAY, messages=messages, max_tokens=5, temperature=0.5, top_p=0.0)
    assert sent.path == "", "the base URL is the whole address"
    assert json.loads(sent.body) == {
        "lang": "cn",
        "data": ["System: Be brief.\nUser: hi\nAssistant: hello\nUser: hi\nAssistant: "],
        "decode_strategy": {"temperature": 0.5, "max_output_tokens": 5, "top_p": 0.0},
    }


def test_the_language_is_the_clients_or_the_owners() -> None:
    english = Vendor("m", params={"lang": "en"})
    assert legacy.body(WIRE, english)["lang"] == "en"
    assert legacy.body(WIRE, english, lang="fr")["lang"] == "fr"
    assert legacy.body(WIRE, GATEWAY)["decode_strategy"] == {}


def test_a_deployment_gets_messages() -> None:
    assert legacy.asked(WIRE, CLOUD).path == "/v1/p%2F1/deployments/d1/chat/completions"
    assert legacy.asked(WIRE, POOLED).path == "/v2/p1/pools/q1/deployments/d1/chat/completions"
    assert legacy.body(WIRE, CLOUD) == {"messages": [USER]}
    wanted = {"max_tokens": 5, "temperature": 0.5, "top_p": 0.5, "presence_penalty": 0.1, "frequency_penalty": 0.2}
    sent = legacy.body(WIRE, CLOUD, **wanted, user="u", stream=True)
    assert sent == {"messages": [USER], **wanted, "user": "u", "stream": True}


@pytest.mark.parametrize("vendor", [GATEWAY, CLOUD])
@pytest.mark.parametrize("fields", HARMLESS, ids=str)
def test_what_asks_for_nothing_is_accepted(fields: dict[str, Any], vendor: Vendor) -> None:
    assert legacy.body(WIRE, vendor, **fields) == legacy.body(WIRE, vendor)


@pytest.mark.parametrize("vendor", [GATEWAY, CLOUD])
@pytest.mark.parametrize(
    ("fields", "param"),
    [*NOWHERE, ({"stop": "x"}, "stop"), ({"tools": [legacy.TOOL]}, "tools"), ({"messages": legacy.ANSWERED}, None)],
    ids=str,
)
def test_what_it_has_not_is_refused(fields: dict[str, Any], param: str | None, vendor: Vendor) -> None:
    error = legacy.refused(WIRE, vendor, **fields)
    assert "Pangu has no" in error.message
    assert param is None or error.param == param


def test_what_only_one_of_the_two_has() -> None:
    assert legacy.refused(WIRE, GATEWAY, presence_penalty=0.5).param == "presence_penalty"
    assert legacy.refused(WIRE, GATEWAY, user="u").param == "user"
    assert legacy.refused(WIRE, CLOUD, lang="en").param == "lang"


def test_whole_answers() -> None:
    script: list[Event] = [Text("Hi"), Tokens(5, 2), Finish("stop")]
    assert Pangu().events(gateway_answer(script)) == [Started(), *script]
    assert Pangu().events(answer(script)) == [Started(ANSWER_ID), *script]
    assert Pangu().events(b'{"answers":[{"content":"Hi"}]}') == [Started(), Text("Hi"), Finish("stop")]
    cut = b'{"choices":[{"message":{"content":"Hi"},"finish_reason":"length"}]}'
    assert Pangu().events(cut) == [Started(), Text("Hi"), Finish("length")]


@pytest.mark.parametrize("sent", [b"{}", b'{"answers":[]}', b'{"choices":[]}', b"no", b'{"choices":[{"message":7}]}'])
def test_an_answer_that_is_none(sent: bytes) -> None:
    [failure] = Pangu().events(sent)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, UpstreamBroken)


def test_a_stream() -> None:
    decoder = Pangu().stream()
    script: list[Event] = [Text("He"), Text("y"), Tokens(5, 2), Finish("stop")]
    assert decoder.feed(stream(script)) + decoder.close() == [Started(ANSWER_ID), *script]


def test_a_stream_as_its_descendants_send_it() -> None:
    assert decoded(
        'data: {"id":"x","choices":[{"delta":{"role":"assistant"}}]}',
        'data: {"id":"x","choices":[{"delta":{"content":"Hi"}}]}',
        'data: {"id":"x","choices":[]}',
        'data: {"choices":[{"delta":{},"finish_reason":"length"}]}',
    ) == [Started("x"), Text("Hi"), Finish("length")]


def test_a_stream_that_nothing_ends_is_whole_once_it_has_begun() -> None:
    assert decoded('data:{"choices":[{"message":{"content":"Hi"}}]}') == [Started(), Text("Hi"), Finish("stop")]
    [failure] = decoded(": nothing")
    assert isinstance(failure, Failure)


def test_a_stream_that_is_moderated() -> None:
    events = decoded(
        'event:moderation\ndata:{"suggestion":"pass"}',
        'data:{"choices":[{"message":{"content":"Hi"}}]}',
        'event:moderation\ndata:{"suggestion":"block"}',
        'data:{"choices":[{"message":{"content":"more"}}]}',
    )
    assert events == [Started(), Text("Hi"), Finish("content_filter")]


@pytest.mark.parametrize(
    ("code", "status"),
    [("PANGU.0010", 400), ("PANGU.0011", 401), ("APIGW.0301", 401), ("APIG.0101", 401), ("PANGU.9999", 500)],
)
def test_errors_inside_an_answer_and_a_stream(code: str, status: int) -> None:
    reported = json.dumps({"id": "r1", "error_code": code, "error_msg": "no"})
    for events in (Pangu().events(reported.encode()), decoded(f"data: {reported}"), decoded(reported)):
        [failure] = events
        assert isinstance(failure, Failure)
        error = failure.error
        assert (error.status, error.vendor_code, error.message, error.request_id) == (status, code, "no", "r1")


def test_errors_with_a_status() -> None:
    error = Pangu().error(429, {}, b'{"error_code":"APIG.0308"}')
    assert (error.status, error.message) == (429, "Pangu reported the error APIG.0308.")
    assert Pangu().error(500, {}, b'{"message":"down"}').message == "down"
    assert Pangu().error(502, {}, b"bad gateway").message == "bad gateway"
