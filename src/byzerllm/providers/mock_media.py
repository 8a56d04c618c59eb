"""What the built-in mock answers beside text: a short tone, a transcript, a picture of one pixel, a ranking. Pure."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import Any

import msgspec

from byzerllm.errors import InvalidInput
from byzerllm.providers.mock_replies import Knobs, Refusal, Reply, check_model, plain, read, response
from byzerllm.wire.base import Task
from byzerllm.wire.multipart import decode_form

_RATE = 8000  # samples a second
_HERTZ = 440
_SAMPLES = _RATE // 5
PATHS = (b"/audio/speech", b"/audio/transcriptions", b"/images/generations", b"/rerank")


class SpeechRequest(msgspec.Struct):
    model: str
    input: str


class ImageRequest(msgspec.Struct):
    model: str
    prompt: str
    n: int | None = None


class RerankRequest(msgspec.Struct):
    model: str
    query: str
    documents: list[str | dict[str, Any]]
    top_n: int | None = None


_decode_speech = msgspec.json.Decoder(SpeechRequest).decode
_decode_image = msgspec.json.Decoder(ImageRequest).decode
_decode_rerank = msgspec.json.Decoder(RerankRequest).decode


def tone() -> bytes:
    """A fifth of a second of a tone, as a wav file of 8-bit samples."""
    samples = bytes(128 + round(40 * math.sin(2 * math.pi * _HERTZ * n / _RATE)) for n in range(_SAMPLES))
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + _SAMPLES, b"WAVE", b"fmt ", 16, 1, 1, _RATE, _RATE, 1, 8,
                       b"data", _SAMPLES)  # fmt: skip
    return head + samples


def pixel() -> bytes:
    """A red one, as a png file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    row = zlib.compress(b"\0\xff\0\0")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")


def reply_to(path: bytes, content_type: bytes, body: bytes, knobs: Knobs, number: int, now: float) -> Reply:
    """The reply to a request for one of ``PATHS``; ``number`` and ``now`` as for a chat.

    Raises:
        Refusal: the request is malformed, or for a model that is not there.
    """
    if path.endswith(b"/speech"):
        return speak(body, knobs, number)
    if path.endswith(b"/transcriptions"):
        return transcribe(body, content_type, knobs, number)
    if path.endswith(b"/rerank"):
        return rank(body, knobs, number)
    return draw(body, knobs, number, now)


def speak(body: bytes, knobs: Knobs, number: int) -> Reply:
    """The reply to a request for speech: the tone, whatever format was asked for."""
    request: SpeechRequest = read(_decode_speech, body)
    check_model(request.model, knobs)
    sound = tone()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nx-request-id: mock-{number}\r\n"
    return plain(f"{head}Content-Length: {len(sound)}\r\n\r\n".encode() + sound, ["sound"], knobs)


def transcribe(body: bytes, content_type: bytes, knobs: Knobs, number: int) -> Reply:
    """The reply to a form with a sound file: what ``knobs.reply`` says, or how much was sent."""
    try:
        form = decode_form(Task.TRANSCRIPTION, content_type, body)
    except InvalidInput as error:
        raise Refusal(400, str(error), "invalid_request") from None
    check_model(form.model, knobs)
    text = knobs.reply or f"You sent {len(body)} bytes."
    return plain(response(number, {"text": text}), ["text"], knobs)


def draw(body: bytes, knobs: Knobs, number: int, now: float) -> Reply:
    """The reply to a request for images: a red pixel each."""
    request: ImageRequest = read(_decode_image, body)
    check_model(request.model, knobs)
    data = [{"b64_json": base64.b64encode(pixel()).decode()}] * (request.n or 1)
    return plain(response(number, {"created": int(now), "data": data}), ["image"], knobs)


def rank(body: bytes, knobs: Knobs, number: int) -> Reply:
    """The reply to a reranking: the share of the query's words that a document has."""
    request: RerankRequest = read(_decode_rerank, body)
    check_model(request.model, knobs)
    wanted = set(request.query.lower().split()) or {""}
    texts = [d if isinstance(d, str) else str(d.get("text", "")) for d in request.documents]
    scores = [len(wanted & set(text.lower().split())) / len(wanted) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: -scores[index])[: request.top_n]
    results = [{"index": index, "relevance_score": scores[index]} for index in order]
    used = sum(len(text.split()) for text in (request.query, *texts))
    answer = {"id": f"rerank-mock-{number}", "model": request.model, "results": results}
    return plain(response(number, {**answer, "usage": {"prompt_tokens": used, "total_tokens": used}}), ["rank"], knobs)
