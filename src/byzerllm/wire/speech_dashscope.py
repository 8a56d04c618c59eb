"""Qwen's speech on DashScope's own API. Facts: alibabacloud.com/help/en/model-studio/qwen-tts.

A stream has the sound itself, as bare samples (16 bit, 24 kHz); an answer in one piece names a wav file.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

import msgspec

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor
from byzerllm.wire.dashscope import DEFAULT_STATUS, frame_status
from byzerllm.wire.media import Download, MediaDecoder, decode_speech, sound_type
from byzerllm.wire.openai import parse_error
from byzerllm.wire.sse import ServerSentEvent, SseReader

FORMATS = {"wav": "", "pcm": "stream"}
_PATH = "/services/aigc/multimodal-generation/generation"


class _Audio(msgspec.Struct):
    url: str | None = None
    data: str | None = None


class _Output(msgspec.Struct):
    audio: _Audio | None = None
    finish_reason: str | None = None


class _Reply(msgspec.Struct):
    output: _Output | None = None
    code: str | None = None


_REPLY = msgspec.json.Decoder(_Reply)


class DashScopeSpeech:
    name = "speech_dashscope"
    tasks = frozenset((Task.SPEECH,))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        speech = decode_speech(request, vendor, known=frozenset(("language_type",)))
        if speech.speed is not None:
            vendor.needs("speed", "speed")
        headers = {"X-DashScope-SSE": "enable"} if speech.one_of(FORMATS) else {}
        spoken = {"text": speech.input, "voice": speech.spoken_by(vendor), **speech.extra}
        return Outgoing(_PATH, msgspec.json.encode({"model": vendor.model, "input": spoken}), headers)

    def decoder(self, request: Request, now: int) -> MediaDecoder:
        content_type = sound_type(request, FORMATS)
        return _Stream(content_type) if content_type == b"audio/pcm" else _File(content_type)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return parse_error(status, headers, body)


class _File:
    """One JSON answer that says where the sound is."""

    def __init__(self, content_type: bytes) -> None:
        self.content_type = content_type
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        self._parts.append(data)
        return b""

    def close(self) -> Download:
        audio = _decode(b"".join(self._parts)).audio
        if audio is None or not audio.url:
            raise UpstreamBroken("DashScope's answer names no sound.")
        return Download((audio.url,), lambda files: files[0])


class _Stream:
    def __init__(self, content_type: bytes) -> None:
        self.content_type = content_type
        self._reader = SseReader()
        self._over = False

    def feed(self, data: bytes) -> bytes:
        return b"".join(self._sound(event) for event in self._reader.feed(data))

    def close(self) -> bytes:
        sound = b"".join(self._sound(event) for event in self._reader.close())
        if not self._over:
            raise UpstreamBroken("DashScope ended its stream before the sound was whole.")
        return sound

    def _sound(self, event: ServerSentEvent) -> bytes:
        output = _decode(event.data, frame_status(event))
        self._over = self._over or output.finish_reason == "stop"
        try:
            return base64.b64decode(output.audio.data or "", validate=True) if output.audio is not None else b""
        except (binascii.Error, ValueError):
            raise UpstreamBroken("DashScope's answer has sound that is not in base64.") from None


def _decode(body: bytes, status: int = DEFAULT_STATUS) -> _Output:
    try:
        reply = _REPLY.decode(body)
    except BAD_JSON as error:
        raise UpstreamBroken(f"DashScope's answer cannot be read: {error}.") from None
    if reply.code:
        raise parse_error(status, {}, body)
    return reply.output or _Output()
