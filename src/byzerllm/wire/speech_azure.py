"""Azure's speech service: SSML up, sound down. Facts: learn.microsoft.com/azure/ai-services/speech-service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.sax.saxutils import escape, quoteattr

from byzerllm.errors import InvalidInput, UpstreamError
from byzerllm.wire.base import Outgoing, Request, Task, Vendor
from byzerllm.wire.media import decode_speech, sound_type
from byzerllm.wire.openai import parse_error

FORMATS = {
    "mp3": "audio-48khz-192kbitrate-mono-mp3",
    "wav": "riff-24khz-16bit-mono-pcm",
    "opus": "ogg-48khz-16bit-mono-opus",
    "pcm": "raw-24khz-16bit-mono-pcm",
}
_LANGUAGE = re.compile(r"[a-z]{2,3}-[A-Za-z]{2,}")  # every voice's name begins with it
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# The body of an error answer is often empty.
_REASONS = {
    400: "the service refused the request; is the voice one of this region's?",
    401: "the service refused saas.api_key; it belongs to one region: check saas.service_region",
    429: "too many requests, or the quota is used up",
}


class AzureSpeech:
    """Sound is passed on as it comes."""

    name = "speech_azure"
    tasks = frozenset((Task.SPEECH,))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        speech = decode_speech(request, vendor, known=frozenset(("language",)))
        bad = _NOT_XML.search(speech.input)
        if bad is not None:
            raise InvalidInput(f"'input' has the character {bad[0]!r}, which cannot be spoken.", param="input")
        voice = speech.spoken_by(vendor, vendor.model)
        found = _LANGUAGE.match(voice)
        language = speech.extra.get("language") or (found[0] if found else "en-US")
        text = escape(speech.input)
        if speech.speed is not None:
            text = f"<prosody rate='{speech.speed:g}'>{text}</prosody>"
        body = (
            f"<speak version='1.0' xmlns='http://www.w3.org/2001/10/synthesis' xml:lang={quoteattr(str(language))}>"
            f"<voice name={quoteattr(voice)}>{text}</voice></speak>"
        )
        headers = {"Content-Type": "application/ssml+xml", "X-Microsoft-OutputFormat": speech.one_of(FORMATS)}
        return Outgoing("/cognitiveservices/v1", body.encode(), headers)

    def decoder(self, request: Request, now: int) -> AsItComes:
        return AsItComes(sound_type(request, FORMATS))

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        error = parse_error(status, headers, body)
        if not body.strip() and status in _REASONS:
            error.message = _REASONS[status]
        error.request_id = error.request_id or headers.get("x-requestid")
        return error


class AsItComes:
    """The answer's body is the sound."""

    def __init__(self, content_type: bytes) -> None:
        self.content_type = content_type

    def feed(self, data: bytes) -> bytes:
        return data

    def close(self) -> bytes:
        return b""
