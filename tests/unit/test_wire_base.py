"""What is read from a request's body, and that everything else of it stays as it was sent."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.errors import InvalidInput
from byzerllm.wire import check_wire
from byzerllm.wire.base import Task, decode_request, with_model


def swapped(body: bytes, model: str = "gpt-x", **defaults: bytes) -> bytes:
    request = decode_request(Task.CHAT, body)
    return with_model(request, model, {k: msgspec.Raw(v) for k, v in defaults.items()})


def test_a_format_is_found_by_its_name_and_an_unknown_one_is_refused() -> None:
    check_wire("openai")
    with pytest.raises(InvalidInput, match=r"Unknown wire format 'telex'\. Known: .*openai"):
        check_wire("telex")


@pytest.mark.parametrize(
    ("given", "stream"),
    [(b"", False), (b',"stream":true', True), (b',"stream": false', False), (b',"stream":null', False)],
)
def test_model_and_stream_are_read(given: bytes, stream: bool) -> None:
    request = decode_request(Task.COMPLETION, b'{ "model" : "m"%b }' % given)
    assert (request.task, request.model, request.stream) == (Task.COMPLETION, "m", stream)


def test_a_listener_that_serves_one_model_takes_any_name_or_none() -> None:
    for body in (b'{"model":"other"}', b"{}"):
        assert decode_request(Task.CHAT, body, served_model="mine").model == "mine"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"", None, "no JSON object"),
        (b"[1]", None, "no JSON object"),
        (b'{"model":"m"', None, "no JSON object"),
        (b'{"model":"m","x":NaN}', None, "no JSON object"),
        (b'{"\xb4":1,"model":"m"}', None, "no JSON object"),
        (b'{"model":"m","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}", None, "no JSON object"),
        (b'{"model":1}', "model", "must be a string"),
        (b'{"model":null}', "model", "must be a string"),
        (b'{"model":"\xb4"}', "model", "must be a string"),
        (b"{}", "model", "missing"),
        (b'{"model":""}', "model", "missing"),
        (b'{"model":"m","stream":"yes"}', "stream", "true or false"),
        (b'{"model":"m","stream":1}', "stream", "true or false"),
    ],
)
def test_a_body_that_cannot_be_routed_is_refused(body: bytes, param: str | None, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        decode_request(Task.CHAT, body)
    assert refused.value.param == param


@pytest.mark.parametrize(
    "value",
    [
        b"123456789012345678901234567890",
        b"1.10",
        b"1E400",
        b"-0.0",
        b'"\\u00e9\\/ \\ud83d\\ude00"',
        '"é 😀"'.encode(),
        b'[ { "type" : "image_url" ,\n "image_url":{"url":"data:,"} } ]',
        b'{"model":"inner","a":1,"a":2}',
        b"null",
    ],
)
def test_every_value_keeps_its_bytes(value: bytes) -> None:
    assert swapped(b'{"x": %b ,"model":"m"}' % value) == b'{"x":%b,"model":"gpt-x"}' % value


def test_keys_that_look_alike_stay_apart_and_of_equal_ones_the_last_holds() -> None:
    body = b'{"model":"a","Model":1,"model ":2,"mod\\u0065l":"b","x":1,"x":2}'
    assert decode_request(Task.CHAT, body).model == "b"
    assert swapped(body) == b'{"model":"gpt-x","Model":1,"model ":2,"x":2}'


def test_a_models_name_is_escaped() -> None:
    assert swapped(b'{"model":"m"}', 'a"b\\é') == '{"model":"a\\"b\\\\é"}'.encode()


def test_defaults_hold_where_the_client_said_nothing() -> None:
    out = swapped(b'{"model":"m","seed":1}', seed=b"2", reasoning_effort=b'"low"')
    assert json.loads(out) == {"model": "gpt-x", "seed": 1, "reasoning_effort": "low"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=6), st.booleans(), st.sampled_from([None, 1]))
def test_only_the_models_name_changes(fields: dict[str, object], ascii_only: bool, indent: int | None) -> None:
    fields = {**fields, "model": "m", "stream": True}
    body = json.dumps(fields, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    out = swapped(body)
    assert json.loads(out) == {**json.loads(body), "model": "gpt-x"}
    assert list(json.loads(out)) == list(json.loads(body))
