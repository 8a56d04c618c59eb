"""The relay of a foreign format: what it holds, and what it reads from the client's request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, cast

import pytest

from byzerllm.errors import UpstreamBroken
from byzerllm.gateway import call, translation
from byzerllm.relay.connection import Exchange
from byzerllm.relay.target import Target
from byzerllm.routing.worker import PassThrough, Worker
from byzerllm.spec import Timeouts
from byzerllm.wire import WIRES, translator
from byzerllm.wire.base import Task, decode_request
from byzerllm.wire.openai_events import StreamEncoder

TEXT = b'data: {"candidates":[{"content":{"parts":[{"text":"x"}]}}]}\n\n'
END = b'data: {"candidates":[{"finishReason":"STOP"}]}\n\n'


class Answer:
    """An exchange whose body comes in these pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    async def read(self) -> bytes:
        return next(self._pieces, b"")


def relayed(*pieces: bytes) -> bytes:
    upstream = PassThrough(Target(False, "vendor", 80), "m", Timeouts(), 0, WIRES["openai"], {})
    worker = Worker(0, "0", 1, upstream, 0.0)

    async def relay() -> bytes:
        encoder = StreamEncoder("id", "m", 0, include_usage=False)
        exchange = cast("Exchange", Answer(iter(pieces)))
        parts = translation._pieces(exchange, worker, translator("gemini").stream(), encoder)
        return b"".join([piece async for piece in parts])

    return asyncio.run(relay())


def test_a_stream_may_be_long_but_a_line_of_it_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "ANSWER_LIMIT", 1024)
    assert relayed(*[TEXT] * 100, END).count(b'"x"') == 100
    with pytest.raises(UpstreamBroken, match="cannot be passed on") as caught:
        relayed(TEXT, b"data: ", *[b"y" * 100] * 20)
    assert caught.value.was_answered


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (None, False),
        ({}, False),
        ({"include_usage": True}, True),
        ({"include_usage": False, "include_obfuscation": True}, False),
    ],
)
def test_usage_comes_when_it_is_asked_for(options: Any, wanted: bool) -> None:
    request = decode_request(Task.CHAT, json.dumps({"model": "m", "stream_options": options}).encode())
    assert translation._wants_usage(request) is wanted
