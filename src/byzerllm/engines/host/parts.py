"""The parts of a chat's messages: texts, images and sounds, as transformers' processors take them.

Images and sounds come with the request. Nothing is fetched: the engine must not become a way into the network.
"""

from __future__ import annotations

import base64
import io
import struct
from dataclasses import dataclass
from typing import Any

from byzerllm.engines.host.sounds import at_least, samples
from byzerllm.errors import InvalidInput

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # Pillow has others, of which some start programs
MAX_PIXELS = 2**27  # of a request's images together, 3 bytes each
MAX_SECONDS = 3600  # of a request's sounds together
WINDOW = 30  # seconds: models hear pieces so long, and to many of them a shorter sound is one that ends with silence
SHORTEST = 0.2  # seconds: of less some make no token at all, so that silence is put behind it


@dataclass(frozen=True)
class Senses:
    """What a model takes beside text. ``rate`` is how many samples a second it hears, 0 if it hears nothing, and
    ``longest`` how many seconds of one sound."""

    sees: bool = False
    rate: int = 0
    longest: float = MAX_SECONDS

    @property
    def takes(self) -> str:
        """In words for a person."""
        *rest, last = ["text", *["images"] * self.sees, *["sounds"] * (self.rate > 0)]
        return f"{', '.join(rest)} and {last}" if rest else last


class Parts:
    """Reads the messages of one request. ``media`` is how many images and sounds it has found."""

    def __init__(self, senses: Senses) -> None:
        self.media = 0
        self._senses = senses
        self._pixels = MAX_PIXELS
        self._seconds = float(MAX_SECONDS)

    def of(self, content: Any) -> list[dict[str, Any]]:
        """A message's content in parts.

        Raises:
            InvalidInput: it is no text and no list, a part is of a kind that the model does not take, or it cannot be
                read.
        """
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        if content is not None and not isinstance(content, list):
            raise InvalidInput("A message's content must be a text or a list of parts.", param="messages")
        return [self._part(part) for part in content or ()]

    def _part(self, part: Any) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return {"type": "text", "text": part["text"]}
        given = part.get(kind) if isinstance(kind, str) else None
        if kind == "image_url" and self._senses.sees:
            return {"type": "image", "image": self._image(_from_url(_field(given, "url"), "image/png"))}
        if kind == "audio_url" and self._senses.rate:
            return {"type": "audio", "audio": self._sound(_from_url(_field(given, "url"), "audio/wav"))}
        if kind == "input_audio" and self._senses.rate:
            return {"type": "audio", "audio": self._sound(_from_base64(_field(given, "data")))}
        raise InvalidInput(f"This model reads {self._senses.takes}, and a message holds {kind!r}.", param="messages")

    def _image(self, data: bytes) -> Any:
        from PIL import Image, UnidentifiedImageError

        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            self._take(*image.size)
            self.media += 1
            return _as_shown(image)
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
            unknown = isinstance(error, UnidentifiedImageError)  # its text shows an object of Python's
            reason = f"it is none of {', '.join(FORMATS)}" if unknown else error
            raise InvalidInput(f"An image cannot be read: {reason}.", param="messages") from None

    def _take(self, width: int, height: int) -> None:
        self._pixels -= width * height
        if self._pixels < 0:
            raise InvalidInput(
                f"The images have more than {MAX_PIXELS:,} pixels; the one of {width} x {height} is too much.",
                param="messages",
            )

    def _sound(self, data: bytes) -> Any:
        """Samples of one channel, as many a second as the model hears."""
        rate = self._senses.rate
        sound = samples(data, rate, longest=self._senses.longest, param="messages")
        self._seconds -= max(len(sound) / rate, WINDOW)
        if self._seconds < 0:
            raise InvalidInput(
                f"The sounds last longer than {MAX_SECONDS} seconds, of which each takes at least {WINDOW}.",
                param="messages",
            )
        self.media += 1
        return at_least(int(SHORTEST * rate), sound)


def _as_shown(image: Any) -> Any:
    """An image in RGB as programs show it: the way up that its camera noted, and white where it is transparent."""
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    page = Image.new("RGB", upright.size, "white")
    drawn = upright.convert("RGBA")
    page.paste(drawn, mask=drawn)
    return page


def _field(given: Any, name: str) -> Any:
    """OpenAI puts a part's content into an object; other clients leave that out."""
    return given.get(name) if isinstance(given, dict) else given


def _from_url(url: Any, example: str) -> bytes:
    if not isinstance(url, str) or not url.startswith("data:"):
        raise InvalidInput(
            "Images and sounds are taken as data URLs only; nothing is fetched.",
            hint=f"Send data:{example};base64,...",
            param="messages",
        )
    return _from_base64(url.partition(",")[2])


def _from_base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"An image or a sound is not in base64: {error}.", param="messages") from None
