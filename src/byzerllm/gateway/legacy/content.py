"""What the older clients write into a message's content beside plain text, as OpenAI's parts. Pure.

Any text may happen to be JSON, so only what is surely meant for this is taken for it; the rest stays the text it is.
"""

from __future__ import annotations

import json
import re
from typing import Any

_TAG = re.compile(r"<_(image|audio)_>(.*?)</_\1_>", re.DOTALL)
_DATA_URL = re.compile(r"data:(image|audio)/([\w.+-]+);base64,")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{64,}={0,2}")  # nothing shorter is a picture or a sound
_PART_TYPES = ("text", "image_url", "input_audio", "audio_url", "video_url")
_NOT_CHAT = ("input", "voice", "audio", "audio_url")
_SOUND_FORMATS = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav"}

Part = dict[str, Any]


def content(value: Any) -> Any:
    """A message's content in OpenAI's form: the text itself, or its parts where it is written as some."""
    if isinstance(value, str):
        found = _json(value, "[")
        return (_parts(found) if isinstance(found, list) else None) or _tagged(value) or value
    if isinstance(value, list):
        return _parts(value) or value
    return value


def form(value: Any) -> dict[str, Any] | None:
    """The fields of a request that is no chat (speech, an image, a transcription), if the content is written as one.

    A chat about JSON looks the same: whoever asks must know that the instance is no chat model.
    """
    if isinstance(value, str):
        value = _json(value, "[") or _json(value, "{")
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict) and any(name in value for name in _NOT_CHAT):
        return value
    return None


def image_part(image: str, **others: Any) -> Part | None:
    """A picture given by address or as base64, with or without ``data:`` before it; None if it is none of these."""
    if _BASE64.fullmatch(image):
        image = f"data:image/jpeg;base64,{image}"
    if not image.startswith(("data:image/", "http://", "https://")):
        return None
    return {"type": "image_url", "image_url": {"url": image, **others}}


def _json(text: str, start: str) -> Any:
    if not text.lstrip().startswith(start):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _parts(items: list[Any]) -> list[Part] | None:
    """None where one of them is no part: then the whole is something else."""
    parts: list[Part] = []
    for item in items:
        found = _part(item) if isinstance(item, dict) else None
        if not found:
            return None
        parts += found
    return parts


def _part(item: dict[str, Any]) -> list[Part] | None:
    """The older form has no type, and may hold a text beside the picture or the sound that it is about."""
    if "type" in item:
        return [item] if item["type"] in _PART_TYPES else None
    parts: list[Part | None] = []
    others = {name: value for name, value in item.items() if name not in ("text", "image", "image_url")}
    if "image" in item or "image_url" in item:
        parts.append(image_part(str(item.get("image", item.get("image_url"))), **others))
    elif "audio" in item or "audio_url" in item:
        parts.append(_audio_part(str(item.get("audio", item.get("audio_url")))))
    elif set(item) != {"text"}:
        return None
    if "text" in item:
        parts.append({"type": "text", "text": item["text"]} if isinstance(item["text"], str) else None)
    known = [part for part in parts if part is not None]
    return known if len(known) == len(parts) else None


def _audio_part(audio: str) -> Part | None:
    found = _DATA_URL.match(audio)
    if found and found[1] == "audio":
        kind = _SOUND_FORMATS.get(found[2], found[2])
        return {"type": "input_audio", "input_audio": {"data": audio[found.end() :], "format": kind}}
    if audio.startswith(("http://", "https://")):
        return {"type": "audio_url", "audio_url": {"url": audio}}
    if _BASE64.fullmatch(audio):
        return {"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}}
    return None


def _tagged(text: str) -> list[Part] | None:
    """The pictures and sounds of a text with ``<_image_>`` or ``<_audio_>`` in it, then the text without them.

    A tag with the path of a file is left as it is: it would be a file of this machine, and any prompt may hold it.
    """
    parts: list[Part] = []

    def take(tag: re.Match[str]) -> str:
        value = tag[2].strip()
        part = image_part(value) if tag[1] == "image" else _audio_part(value)
        if part is None:
            return tag[0]
        parts.append(part)
        return ""

    rest = _TAG.sub(take, text).strip()
    if not parts:
        return None
    return [*parts, {"type": "text", "text": rest}] if rest else parts
