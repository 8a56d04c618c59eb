"""MiniMax's speech, ``/t2a_v2``: hexadecimal sound in JSON, streamed as it is made.

Facts: platform.minimax.io/docs. The last event of a stream may have the whole sound once more. Errors come inside a
200 answer, and as one JSON body even where a stream was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor
from byzerllm.wire.in_band import status_of
from byzerllm.wire.media import MediaDecoder, decode_speech, sound_type
from byzerllm.wire.openai import parse_error
from byzerllm.wire.sse import SseReader

FORMATS = {"mp3": "mp3", "wav": "wav", "flac": "flac", "pcm": "pcm", "opus": "opus"}
_WHOLE = "wav"  # begins with its length, so there is none in pieces
_VOICE = frozenset(("vol", "pitch", "emotion"))
_AUDIO = frozenset(("sample_rate", "bitrate", "channel"))
_OTHER = frozenset(("language_boost", "pronunciation_dict", "voice_modify", "timber_weights", "subtitle_enable"))
_LAST = 2


class _Data(msgspec.Struct):
    audio: str | None = None
    status: int | None = None


class _Outcome(msgspec.Struct):
    status_code: int = 0


class _Reply(msgspec.Struct):
    data: _Data | None = None
    base_resp: _Outcome | None = None


_REPLY = msgspec.json.Decoder(_Reply)


class MiniMaxSpeech:
    name = "speech_minimax"
    tasks = frozenset((Task.SPEECH,))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        speech = decode_speech(request, vendor, known=_VOICE | _AUDIO | _OTHER)
        form = speech.one_of(FORMATS)
        voice: dict[str, Any] = {"voice_id": speech.spoken_by(vendor)}
        if speech.speed is not None:
            voice["speed"] = speech.speed
        body = {
            "model": vendor.model,
            "text": speech.input,
            "stream": form != _WHOLE,
            "voice_setting": voice | _chosen(speech.extra, _VOICE),
            "audio_setting": {"format": form, **_chosen(speech.extra, _AUDIO)},
            **_chosen(speech.extra, _OTHER),
        }
        if form != _WHOLE:
            body["stream_options"] = {"exclude_aggregated_audio": True}
        return Outgoing("/t2a_v2", msgspec.json.encode(body))

    def decoder(self, request: Request, now: int) -> MediaDecoder:
        return _Decoder(sound_type(request, FORMATS))

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return parse_error(status, headers, body)


def _chosen(extra: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if name in names}


class _Decoder:
    """A stream of events, or one JSON body."""

    def __init__(self, content_type: bytes) -> None:
        self.content_type = content_type
        self._reader = SseReader()
        self._body: list[bytes] | None = None  # of an answer that is no stream
        self._begun = False
        self._heard = False
        self._over = False

    def feed(self, data: bytes) -> bytes:
        if not self._begun:
            data = data.lstrip()
            if not data:
                return b""
            self._begun = True
            self._body = [] if data.startswith(b"{") else None
        if self._body is not None:
            self._body.append(data)
            return b""
        return b"".join(self._sound(event.data) for event in self._reader.feed(data))

    def close(self) -> bytes:
        pieces = [b"".join(self._body)] if self._body is not None else [event.data for event in self._reader.close()]
        sound = b"".join(self._sound(piece) for piece in pieces)
        if not self._over:
            raise UpstreamBroken("MiniMax ended its stream before the sound was whole.")
        return sound

    def _sound(self, event: bytes) -> bytes:
        try:
            reply = _REPLY.decode(event)
            sound = bytes.fromhex(reply.data.audio or "") if reply.data is not None else b""
        except (*BAD_JSON, ValueError) as error:
            raise UpstreamBroken(f"MiniMax's answer is not of its form: {error}.") from None
        if reply.base_resp is not None and reply.base_resp.status_code:
            raise parse_error(status_of(reply.base_resp.status_code), {}, event)
        last = reply.data is not None and reply.data.status == _LAST
        self._over = self._over or last
        if last and self._heard:  # all of it once more
            return b""
        self._heard = self._heard or bool(sound)
        return sound
