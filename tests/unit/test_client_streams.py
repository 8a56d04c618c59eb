"""Streams as the client takes them apart, however the network cut them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.client.admin import described_error, split_lines
from byzerllm.client.chat import event_data
from byzerllm.errors import ByzerError, DeploymentFailed, InvalidInput, ModelNotFound, UpstreamError


@given(st.lists(st.binary(max_size=8).filter(lambda line: b"\n" not in line and not line.endswith(b"\r"))), st.data())
def test_lines_are_the_same_however_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    text = b"".join(line + end for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert list(split_lines(pieces)) == lines


def test_the_last_line_may_have_no_end() -> None:
    assert list(split_lines([b"a\n\nb", b"c"])) == [b"a", b"", b"bc"]


@pytest.mark.parametrize(
    ("lines", "events"),
    [
        ([b"data: a", b"", b"data:b", b""], ["a", "b"]),
        ([b": keep-alive", b"", b"event: x", b"data: a", b"id: 1", b"", b""], ["a"]),
        ([b"data: a", b"data: b", b""], ["a\nb"]),
        ([b"data:  two spaces", b""], [" two spaces"]),
        ([b"data: cut off"], []),
        (["data: 你好".encode(), b""], ["你好"]),
        ([b"data: \xff", b""], ["\ufffd"]),
    ],
)
def test_server_sent_events(lines: list[bytes], events: list[str]) -> None:
    assert list(event_data(lines)) == events


@pytest.mark.parametrize(
    ("payload", "status", "kind", "exit_code"),
    [
        ({"message": "m", "code": "model_not_found"}, 404, ModelNotFound, 1),
        ({"message": "m", "code": "deployment_failed"}, 500, DeploymentFailed, 1),
        ({"message": "m", "code": "invalid_request"}, 400, InvalidInput, 2),
        ({"message": "m", "code": "vendor_thing"}, 402, UpstreamError, 1),
        ("m", 500, ByzerError, 1),
        (None, 502, ByzerError, 1),
    ],
)
def test_an_answers_error_is_of_its_class(payload: object, status: int, kind: type[ByzerError], exit_code: int) -> None:
    error = described_error(payload, status)
    assert type(error) is kind
    assert (error.status, error.exit_code) == (status, exit_code)
    assert error.message
