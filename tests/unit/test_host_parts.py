"""The parts of a chat's messages, as far as nothing is decoded: that is in integration/test_engine_hearing.py."""

from __future__ import annotations

from typing import Any

import pytest

from byzerllm.engines.host.parts import Parts, Senses
from byzerllm.errors import InvalidInput

BOTH, SEES, HEARS = Senses(sees=True, rate=16_000), Senses(sees=True), Senses(rate=16_000)
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}


def test_text_is_a_part() -> None:
    text = {"type": "text", "text": "hello"}
    assert Parts(BOTH).of("hello") == Parts(BOTH).of([text]) == [text]
    assert Parts(BOTH).of(None) == Parts(BOTH).of([]) == []


@pytest.mark.parametrize(
    ("senses", "part", "takes"),
    [
        (SEES, SOUND, "text and images"),
        (SEES, {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}}, "text and images"),
        (HEARS, IMAGE, "text and sounds"),
        (Senses(), IMAGE, "text"),
        (BOTH, {"type": "video_url"}, "text, images and sounds"),
        (BOTH, {"type": "text", "text": 5}, "text, images and sounds"),
        (BOTH, {"text": "hello"}, "text, images and sounds"),
        (BOTH, {"type": ["text"]}, "text, images and sounds"),
        (BOTH, "hello", "text, images and sounds"),
    ],
)
def test_a_part_that_the_model_does_not_take_is_refused(senses: Senses, part: Any, takes: str) -> None:
    with pytest.raises(InvalidInput, match=f"^This model reads {takes}, and") as refused:
        Parts(senses).of([part])
    assert refused.value.param == "messages"


@pytest.mark.parametrize("content", [5, True, {"type": "text", "text": "hello"}])
def test_content_is_a_text_or_a_list(content: Any) -> None:
    with pytest.raises(InvalidInput, match="must be a text or a list of parts"):
        Parts(BOTH).of(content)


@pytest.mark.parametrize(
    "url", ["http://localhost/a", "https://a.b/c.wav", "file:///etc/passwd", "/etc/passwd", 5, None]
)
@pytest.mark.parametrize("kind", ["image_url", "audio_url"])
def test_nothing_is_fetched(kind: str, url: Any) -> None:
    for given in (url, {"url": url}):
        with pytest.raises(InvalidInput, match="nothing is fetched"):
            Parts(BOTH).of([{"type": kind, kind: given}])


@pytest.mark.parametrize("given", [{"data": "#"}, {"data": "A"}, {"data": "é"}, {"data": None}, {}, None, 5])
def test_a_sound_is_in_base64(given: Any) -> None:
    with pytest.raises(InvalidInput, match="not in base64"):
        Parts(BOTH).of([{"type": "input_audio", "input_audio": given}])
