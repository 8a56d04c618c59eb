"""Volcengine's speech service, in its first form (one JSON answer) and its third (a body of JSON objects).

Facts: volcengine.com/docs/6561. Errors come inside a 200 answer too, told by ``code``.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from byzerllm.errors import UpstreamBroken, UpstreamError
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor
from byzerllm.wire.media import MediaDecoder, decode_speech, sound_type
from byzerllm.wire.openai import parse_error

FORMATS = {"mp3": "mp3", "wav": "wav", "pcm": "pcm", "opus": "ogg_opus"}
FORMATS_V3 = {"mp3": "mp3", "pcm": "pcm", "opus": "ogg_opus"}
_USER = "byzerllm"
_SUCCESS = 3000
_SUCCESS_V3 = 20000000
_STATUS = {3001: 400, 3003: 429, 3005: 503, 3006: 409, 3010: 400, 3011: 400, 3030: 504, 3050: 400}


class VolcengineSpeech:
    """``/api/v1/tts``; the model is the cluster's name, such as ``volcano_tts``."""

    name = "speech_volcengine"
    tasks = frozenset((Task.SPEECH,))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        speech = decode_speech(request, vendor, known=frozenset(("emotion", "language", "rate")))
        audio = {"voice_type": speech.spoken_by(vendor), "encoding": speech.one_of(FORMATS), **speech.extra}
        if speech.speed is not None:
            audio["speed_ratio"] = speech.speed
        body = {
            # The key is in a header: the API wants any text for the token here.
            "app": {"appid": vendor.params.get("app_id", ""), "token": "any", "cluster": vendor.model},
            "user": {"uid": _USER},
            "audio": audio,
            # The API answers each id once.
            "request": {"reqid": uuid.uuid4().hex, "text": speech.input, "text_type": "plain", "operation": "query"},
        }
        return Outgoing("/api/v1/tts", msgspec.json.encode(body))

    def decoder(self, request: Request, now: int) -> MediaDecoder:
        return _Whole(sound_type(request, FORMATS))

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        error = parse_error(status, headers, body)
        error.request_id = error.request_id or headers.get("x-tt-logid")
        return error


class VolcengineSpeechV3(VolcengineSpeech):
    """``/api/v3/tts/unidirectional``; the model is the resource's name, such as ``seed-tts-2.0``."""

    name = "speech_volcengine_v3"

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        speech = decode_speech(request, vendor, known=frozenset(("sample_rate", "emotion")))
        audio: dict[str, Any] = {"format": speech.one_of(FORMATS_V3), **speech.extra}
        if speech.speed is not None:  # -50 is half as fast, 100 twice as fast
            audio["speech_rate"] = round((speech.speed - 1) * 100)
        parameters = {"text": speech.input, "speaker": speech.spoken_by(vendor), "audio_params": audio}
        headers = {"X-Api-Resource-Id": vendor.model, "X-Api-Request-Id": str(uuid.uuid4())}
        if vendor.params.get("app_id"):
            headers["X-Api-App-Id"] = vendor.params["app_id"]
        body = {"user": {"uid": _USER}, "req_params": parameters}
        return Outgoing("/api/v3/tts/unidirectional", msgspec.json.encode(body), headers)

    def decoder(self, request: Request, now: int) -> MediaDecoder:
        return _Objects(sound_type(request, FORMATS_V3))


class _Whole:
    """One JSON object with all of the sound."""

    def __init__(self, content_type: bytes) -> None:
        self.content_type = content_type
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        self._parts.append(data)
        return b""

    def close(self) -> bytes:
        body = b"".join(self._parts)
        try:
            answer = msgspec.json.decode(body, type=dict[str, Any])
        except BAD_JSON as error:
            raise UpstreamBroken(f"Volcengine's answer is no JSON object: {error}.") from None
        if answer.get("code") != _SUCCESS:
            raise _failure(answer)
        return _sound(answer)


class _Objects:
    """JSON objects one after the other, each with a piece of the sound; the last says that all is well."""

    def __init__(self, content_type: bytes) -> None:
        self.content_type = content_type
        self._text = ""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._over = False

    def feed(self, data: bytes) -> bytes:
        text = self._utf8.decode(data)
        self._text += text
        if "}" not in text:
            return b""
        pieces = []
        while self._text:
            try:
                answer, end = json.JSONDecoder().raw_decode(self._text)
            except ValueError:  # it goes on in the next piece
                break
            except RecursionError:
                raise UpstreamBroken("Volcengine's answer is nested without end.") from None
            self._text = self._text[end:].lstrip()
            pieces.append(self._piece(answer))
        return b"".join(pieces)

    def close(self) -> bytes:
        if not self._over:
            raise UpstreamBroken("Volcengine ended its answer before it was whole.")
        return b""

    def _piece(self, answer: Any) -> bytes:
        answer = answer if isinstance(answer, dict) else {}
        if answer.get("code") == _SUCCESS_V3:
            self._over = True
        elif answer.get("code") != 0:
            raise _failure(answer)
        return _sound(answer) if answer.get("data") else b""


def _sound(answer: dict[str, Any]) -> bytes:
    data = answer.get("data")
    if not data or not isinstance(data, str):
        raise UpstreamBroken("Volcengine's answer has no sound.")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise UpstreamBroken("Volcengine's answer has sound that is not in base64.") from None


def _failure(answer: dict[str, Any]) -> UpstreamError:
    code = answer.get("code")
    return UpstreamError(
        str(answer.get("message") or f"Volcengine reported the error {code}."),
        status=_status(code),
        vendor_code=code if isinstance(code, int | str) else None,
        request_id=str(answer["reqid"]) if answer.get("reqid") else None,
    )


def _status(code: Any) -> int:
    """The third form's codes begin with an HTTP status: 45000000 is the caller's fault, 55000000 the service's."""
    if code in _STATUS:
        return _STATUS[code]
    if isinstance(code, int) and 40_000_000 <= code < 60_000_000:
        return {4: 400, 5: 502}[code // 10_000_000]
    return 502
