"""Sound and images: ``/v1/audio/transcriptions``, ``/v1/audio/speech`` and ``/v1/images/generations``."""

from __future__ import annotations

import array
import asyncio
import base64
import io
import re
import wave
from collections.abc import Sequence
from typing import Any

from byzerllm.engines.host.backend import Painter, Picture, Recording, Segment, Sound, Speaker, Transcriber, Transcript
from byzerllm.engines.host.fields import Fields
from byzerllm.engines.host.forms import read_form
from byzerllm.engines.host.protocol import Answer, HttpRequest, Whole
from byzerllm.errors import InvalidInput

TIMED_FORMATS = ("srt", "verbose_json", "vtt")
TRANSCRIPT_FORMATS = ("json", "text", *TIMED_FORMATS)
SOUND_TYPES = {
    "wav": b"audio/wav",
    "pcm": b"audio/pcm",
    "flac": b"audio/flac",
    "mp3": b"audio/mpeg",
    "opus": b"audio/ogg",
}
MAX_SPOKEN = 4096  # characters, as OpenAI has it: memory and time grow with the square
MAX_IMAGES = 10
MAX_STEPS = 999  # most are trained with 1000, and some count from 1
MAX_SIDE = 4096


async def transcriptions(model: Transcriber, request: HttpRequest, _name: str) -> Answer:
    """Write down what is said in a file.

    Raises:
        InvalidInput: it asks for what there is not, or the file cannot be read.
    """
    form = read_form(request.headers.get(b"content-type", b""), request.body)
    fields = Fields({name: _value(name, found) for name, found in form.texts.items()})
    fields.ignore("model", "user")
    format_ = fields.choice("response_format", TRANSCRIPT_FORMATS, "json")
    segments, words = _read_granularities(fields, format_)
    fields.only("stream", "false", False)
    language, prompt = fields.text("language"), fields.text("prompt")
    temperature = fields.number("temperature", 0, 1) or 0.0
    fields.refuse_rest()
    if not form.files.get("file"):
        raise InvalidInput("'file' is missing or empty: send the sound in the form's part 'file'.", param="file")
    recording = Recording(form.files["file"], language, prompt, temperature, segments, words)
    return _transcript(await model.transcribe(recording), format_, recording)


def _read_granularities(fields: Fields, format_: str) -> tuple[bool, bool]:
    """Whether segments are wanted, and whether words are."""
    name = "timestamp_granularities[]"
    asked = {*fields.strings(name), *fields.strings("timestamp_granularities")}
    wrong = sorted(asked - {"segment", "word"})
    if wrong:
        raise fields.bad(name, f"is {wrong[0]!r} and must be segment or word")
    if "word" in asked and format_ != "verbose_json":
        raise fields.bad(name, "can be word only with 'response_format': \"verbose_json\"")
    return format_ in TIMED_FORMATS and asked != {"word"}, "word" in asked


def _value(name: str, texts: list[str]) -> Any:
    """What a form has under a name, where a number is text too."""
    if name.startswith("timestamp_granularities"):
        return texts
    if name != "temperature":
        return texts[-1]
    try:
        return float(texts[-1])
    except ValueError:
        return texts[-1]  # which is then refused


def _transcript(found: Transcript, format_: str, asked: Recording) -> Answer:
    if format_ == "json":
        return Whole({"text": found.text})
    if format_ == "text":
        return Whole(f"{found.text}\n".encode(), content_type=b"text/plain; charset=utf-8")
    if format_ == "verbose_json":
        facts = {"task": "transcribe", "language": found.language, "duration": found.duration, "text": found.text}
        segments = [{"id": i, **segment._asdict()} for i, segment in enumerate(found.segments)]
        words = [{"word": word.text.strip(), "start": word.start, "end": word.end} for word in found.words]
        times = ({"segments": segments} if asked.timestamps else {}) | ({"words": words} if asked.words else {})
        return Whole({**facts, **times})
    subtitles = _subtitles(found.segments, "," if format_ == "srt" else ".", numbered=format_ == "srt")
    head = "" if format_ == "srt" else "WEBVTT\n\n"
    return Whole(f"{head}{subtitles}".encode(), content_type=b"text/plain; charset=utf-8")


def _subtitles(segments: Sequence[Segment], point: str, *, numbered: bool) -> str:
    def clock(seconds: float) -> str:
        whole = round(seconds * 1000)
        hours, minutes = whole // 3_600_000, whole // 60_000 % 60
        return f"{hours:02}:{minutes:02}:{whole // 1000 % 60:02}{point}{whole % 1000:03}"

    blocks = [f"{clock(one.start)} --> {clock(one.end)}\n{one.text.strip()}\n\n" for one in segments]
    return "".join(f"{i}\n{block}" if numbered else block for i, block in enumerate(blocks, 1))


async def speech(model: Speaker, request: HttpRequest, _name: str) -> Answer:
    """Read a text aloud.

    Raises:
        InvalidInput: it asks for what there is not.
    """
    fields = Fields(request.json())
    fields.ignore("model", "user")
    text = fields.required("input")
    if len(text) > MAX_SPOKEN:
        raise fields.bad("input", f"is {len(text)} characters long and must be at most {MAX_SPOKEN}")
    voice = fields.text("voice")
    format_ = fields.choice("response_format", SOUND_TYPES, "wav")
    speed = fields.number("speed", 0.25, 4) or 1.0
    fields.only("stream_format", "audio")
    fields.refuse_rest()
    sound = await model.speak(text, voice, speed)
    return Whole(await asyncio.to_thread(_encoded, sound, format_), content_type=SOUND_TYPES[format_])


def _encoded(sound: Sound, format_: str) -> bytes:
    floats = array.array("f", sound.samples)
    samples = array.array("h", (round(max(-1.0, min(1.0, value)) * 32767) for value in floats))
    if format_ == "pcm":
        return samples.tobytes()
    out = io.BytesIO()
    if format_ == "wav":
        with wave.open(out, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(sound.rate)
            file.writeframes(samples.tobytes())
        return out.getvalue()
    try:
        import numpy
        import soundfile
    except ImportError:
        raise InvalidInput(
            f"'response_format' {format_!r} needs the package soundfile in the engine's environment.",
            hint="Ask for wav or pcm.",
            param="response_format",
        ) from None
    kind = {"opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III")}.get(format_, (format_.upper(), None))
    soundfile.write(out, numpy.frombuffer(sound.samples, numpy.float32), sound.rate, format=kind[0], subtype=kind[1])
    return out.getvalue()


async def images(model: Painter, request: HttpRequest, _name: str) -> Answer:
    """Make images from a text.

    Raises:
        InvalidInput: it asks for what there is not.
    """
    fields = Fields(request.json())
    fields.ignore("model", "user")
    fields.only("response_format", "b64_json")
    fields.only("quality", "auto", "standard")
    fields.only("output_format", "png")
    width, height = _read_size(fields)
    picture = Picture(
        prompt=fields.required("prompt"),
        width=width,
        height=height,
        negative=fields.text("negative_prompt"),
        steps=fields.whole("num_inference_steps", 1, MAX_STEPS),
        guidance=fields.number("guidance_scale", 0, 100),
        seed=fields.whole("seed", -(2**63), 2**63 - 1),
        count=fields.whole("n", 1, MAX_IMAGES) or 1,
    )
    fields.refuse_rest()
    files = await model.paint(picture)
    data = [{"b64_json": base64.b64encode(file).decode()} for file in files]
    return Whole({"created": request.at, "data": data})


def _read_size(fields: Fields) -> tuple[int | None, int | None]:
    size = fields.text("size")
    if size in (None, "auto"):
        return None, None
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", size or "")
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(8 <= side <= MAX_SIDE and side % 8 == 0 for side in sides):
        raise fields.bad("size", f"is {size!r} and must be WIDTHxHEIGHT, multiples of 8 up to {MAX_SIDE}")
    return sides
