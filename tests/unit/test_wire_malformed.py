"""Answers and requests that no format can read end in an error of ours, never in one of the decoder's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
import pytest

from byzerllm.errors import InvalidInput, UpstreamBroken, UpstreamError
from byzerllm.wire import MEDIA, TRANSLATORS, media_format, translator
from byzerllm.wire.base import EmbeddingTranslator, Request, Task, Vendor, decode_request
from byzerllm.wire.chat import decode_chat
from byzerllm.wire.events import Event, Failure

DEEP = b"[" * 100_000 + b"]" * 100_000
# Each format's own text fields, with what is no UTF-8 in them, and endless nesting where any value may stand.
NO_TEXT = (
    b'{"choices":[{"message":{"content":"\xff"},"messages":[{"text":"\xff"}]}],"result":"\xff","type":"\xff",'
    b'"output":{"choices":[{"message":{"content":"\xff"}}],"audio":{"url":"\xff"}},"stopReason":"\xff",'
    b'"candidates":[{"content":{"parts":[{"text":"\xff"}]}}],"answers":[{"content":"\xff"}],"images":[{"url":"\xff"}],'
    b'"header":{"code":0,"message":"\xff"},"data":{"audio":"\xff"}}'
)
TOO_DEEP = b'{"id":' + DEEP + b',"choices":' + DEEP + b',"header":' + DEEP + b',"code":' + DEEP + b',"x":' + DEEP + b"}"


@pytest.mark.parametrize("name", TRANSLATORS)
@pytest.mark.parametrize("body", [NO_TEXT, TOO_DEEP], ids=["no_text", "too_deep"])
def test_answers(name: str, body: bytes) -> None:
    wire = translator(name)

    def streamed() -> list[Event]:
        stream = wire.stream()
        return [*stream.feed(b"data: " + body + b"\n\n"), *stream.close()]

    calls: list[Callable[[], list[Event]]] = [lambda: wire.events(body), streamed]
    for call in calls:
        (failure,) = (event for event in call() if isinstance(event, Failure))
        assert isinstance(failure.error, UpstreamBroken), failure.error
    assert wire.error(500, {}, body).status == 500
    if isinstance(wire, EmbeddingTranslator):
        with contextlib.suppress(UpstreamError):
            assert wire.embeddings(body) == ([], 0)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (name, form)
        for name in sorted(MEDIA.keys() - {"speech_azure"})
        for form in (b'"mp3"', b'"wav"', b'"pcm"')
        if (name, form) != ("speech_dashscope", b'"mp3"')  # it has none
    ],
)
@pytest.mark.parametrize("before", [b"", b"data: "])
@pytest.mark.parametrize("body", [NO_TEXT, TOO_DEEP, DEEP + b"}"], ids=["no_text", "too_deep", "no_object"])
def test_sound_and_images(name: str, form: bytes, before: bytes, body: bytes) -> None:
    request = Request(Task.SPEECH, {"response_format": msgspec.Raw(form)}, "m", False)

    def decode() -> None:
        decoder = media_format(name).decoder(request, 0)
        decoder.feed(before + body + b"\n\n")
        decoder.close()

    with pytest.raises(UpstreamError):
        decode()


@pytest.mark.parametrize("body", [b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}'])
def test_a_clients_request(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_chat(decode_request(Task.CHAT, body))
    with pytest.raises(InvalidInput):
        media_format("images_siliconflow").request(decode_request(Task.IMAGE, body), Vendor("m"))
