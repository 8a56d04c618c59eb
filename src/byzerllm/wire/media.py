"""The seam for vendors' formats of speech and images, and the neutral form of a request for speech. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from byzerllm.errors import InvalidInput, UpstreamError
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor

JSON = b"application/json"


class Download(NamedTuple):
    """What lies elsewhere: the answer is what ``finish`` makes of the contents of ``urls``, in their order."""

    urls: Sequence[str]
    finish: Callable[[Sequence[bytes]], bytes]


class MediaDecoder(Protocol):
    """Turns the bytes of one answer into those for the client, however they are cut."""

    content_type: bytes

    def feed(self, data: bytes) -> bytes:
        """What these bytes add.

        Raises:
            UpstreamError: the vendor reports an error inside its answer.
        """
        ...

    def close(self) -> bytes | Download:
        """The vendor's body has ended: what is still to be said.

        Raises:
            UpstreamError: as above, or the answer is not whole.
        """
        ...


class MediaFormat(Protocol):
    """A vendor's own format for speech or images."""

    name: str
    tasks: frozenset[Task]

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        """The vendor's form of the request.

        Raises:
            InvalidInput: it asks for what the vendor cannot do, or is malformed.
        """
        ...

    def decoder(self, request: Request, now: int) -> MediaDecoder:
        """A decoder for the answer to that request; ``now`` is in seconds since 1970."""
        ...

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """What the vendor's error answer says, with its own status, code, message and request id."""
        ...


class SpeechRequest(msgspec.Struct):
    """What OpenAI's clients send; None: not set. ``extra`` has the fields that OpenAI does not know."""

    input: str
    voice: str | dict[str, Any] | None = None
    response_format: str | None = None
    speed: float | None = None
    instructions: str | None = None
    stream_format: str | None = None
    extra: dict[str, Any] = {}

    def spoken_by(self, vendor: Vendor, default: str | None = None) -> str:
        """The voice, or ``default``, or the one that the table has for the model, since every vendor demands one.

        Raises:
            InvalidInput: neither is there.
        """
        voice = self.voice.get("id") if isinstance(self.voice, dict) else self.voice
        voice = voice or default or vendor.fact("voice")
        if not isinstance(voice, str):
            raise InvalidInput("'voice' is missing: name one of the vendor's voices.", param="voice")
        return voice

    def one_of(self, formats: Mapping[str, str]) -> str:
        """The vendor's name of the wanted sound format; its first where none is named.

        Raises:
            InvalidInput: it has none such; its formats are listed.
        """
        wanted = self.response_format or next(iter(formats))
        if wanted not in formats:
            raise InvalidInput(f"response_format {wanted!r} is none of {', '.join(formats)}.", param="response_format")
        return formats[wanted]


CONTENT_TYPES = {
    "mp3": b"audio/mpeg",
    "wav": b"audio/wav",
    "opus": b"audio/ogg",
    "aac": b"audio/aac",
    "flac": b"audio/flac",
    "pcm": b"audio/pcm",
}


def decode_speech(request: Request, vendor: Vendor, *, known: frozenset[str] = frozenset()) -> SpeechRequest:
    """The neutral form of a request for speech. ``known`` are further fields that the vendor has.

    Raises:
        InvalidInput: a field of the wrong kind, or one that the vendor has nothing for.
    """
    fields = SpeechRequest.__struct_fields__[:-1]
    try:
        speech = msgspec.json.decode(
            msgspec.json.encode({k: v for k, v in request.fields.items() if k in fields}), type=SpeechRequest
        )
        speech.extra = {k: msgspec.json.decode(v) for k, v in request.fields.items() if k not in (*fields, "model")}
    except BAD_JSON as error:
        raise InvalidInput(f"The request for speech is not of OpenAI's form: {error}.") from None
    for name in speech.extra:
        if name not in known:
            vendor.needs(name, name)
    if speech.instructions is not None:
        vendor.needs("instructions", "instructions")
    if speech.stream_format not in (None, "audio"):
        vendor.needs("speech events", "stream_format")
    return speech


def sound_type(request: Request, formats: Mapping[str, str]) -> bytes:
    """The content type of the sound that a request, which was decoded before, asked for."""
    wanted = msgspec.json.decode(request.fields.get("response_format", msgspec.Raw(b"null")))
    return CONTENT_TYPES[wanted or next(iter(formats))]
