"""What a client puts into a message arrives at the vendor or is refused by name, whatever the format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from byzerllm.errors import InvalidInput
from byzerllm.wire import TRANSLATORS, translator
from byzerllm.wire.base import Task, Vendor, decode_request

# A vendor that can do everything, so that only the format itself refuses.
VENDOR = Vendor(
    "m",
    "Acme",
    {"appid": "a"},
    frozenset(("tools", "vision", "json_schema", "reasoning", "n")),
    {"": {"max_output": 100, "path": "multimodal"}},
)
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def sent(wire: str, message: dict[str, Any]) -> str:
    body = json.dumps({"model": "x", "messages": [message]}).encode()
    outgoing = translator(wire).request(decode_request(Task.CHAT, body), VENDOR)
    return outgoing.body.decode()


def outcome(wire: str, message: dict[str, Any]) -> tuple[str, str]:
    """What was sent, and why nothing was; one of them is empty."""
    try:
        return sent(wire, message), ""
    except InvalidInput as refused:
        return "", refused.message


@pytest.mark.parametrize("wire", sorted(TRANSLATORS))
@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        ({"role": "user", "content": "Hi", "name": "Adelaide"}, "name", "Adelaide"),
        ({"role": "user", "content": "Hi", "marking": "noticed"}, "marking", "noticed"),
        ({"role": "user", "content": [{"type": "text", "text": "Hi", "marking": "noticed"}]}, "marking", "noticed"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL, "detail": "high"}}]},
            "detail",
            "high",
        ),
    ],
    ids=["name", "field of a message", "field of a part", "detail"],
)
def test_nothing_is_dropped(wire: str, message: dict[str, Any], field: str, value: str) -> None:
    body, refusal = outcome(wire, message)
    assert value in body or field in refusal or "no vision" in refusal, (body, refusal)


@pytest.mark.parametrize("wire", sorted(TRANSLATORS))
def test_what_asks_for_nothing_is_no_obstacle(wire: str) -> None:
    echoed = {"role": "user", "content": [{"type": "text", "text": "Hello"}], "refusal": None, "annotations": []}
    assert "Hello" in sent(wire, echoed)
