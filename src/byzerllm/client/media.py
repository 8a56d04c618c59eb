"""Speech, images and transcriptions: requests whose question or answer is a file."""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING, Any

from byzerllm.client.admin import Upload
from byzerllm.errors import UpstreamBroken

if TYPE_CHECKING:
    from pathlib import Path

    from byzerllm.client.admin import AdminClient

_FETCH_TIMEOUT = 60.0  # seconds of silence


def speak(client: AdminClient, body: dict[str, Any]) -> bytes:
    """The sound that the server answers with."""
    with client.open("POST", "/v1/audio/speech", body, timeout=None) as response:
        return response.read()


def draw(client: AdminClient, body: dict[str, Any]) -> bytes:
    """The first image of the answer; one that is only named is fetched.

    Raises:
        UpstreamBroken: the answer has no image, or the vendor's server does not give it out.
    """
    answer = client.call("POST", "/v1/images/generations", body, timeout=None)
    image = (answer.get("data") or [{}])[0]
    if image.get("b64_json"):
        try:
            return base64.b64decode(image["b64_json"], validate=True)
        except (binascii.Error, ValueError):
            raise UpstreamBroken("The answer's image is not in base64.") from None
    return _fetch(str(image.get("url") or ""))


def transcribe(client: AdminClient, model: str, file: Path, prompt: str) -> str:
    """What is said in a sound file; ``prompt`` may name words that occur in it.

    Raises:
        OSError: the file cannot be read.
    """
    fields = {"model": model, "prompt": prompt} if prompt else {"model": model}
    answer = client.call("POST", "/v1/audio/transcriptions", form(fields, file), timeout=None)
    return str(answer.get("text") or "")


def form(fields: dict[str, str], file: Path) -> Upload:
    """A multipart form with one file in it."""
    boundary = os.urandom(16).hex()
    disposition = f'--{boundary}\r\nContent-Disposition: form-data; name="'
    texts = "".join(f'{disposition}{name}"\r\n\r\n{value}\r\n' for name, value in fields.items())
    name = "".join("_" if c in '"\\\r\n' else c for c in file.name)
    head = f'{texts}{disposition}file"; filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
    content = b"".join((head.encode(), file.read_bytes(), f"\r\n--{boundary}--\r\n".encode()))
    return Upload(f"multipart/form-data; boundary={boundary}", content)


def _fetch(url: str) -> bytes:
    if not url.startswith(("https://", "http://")):
        raise UpstreamBroken("The answer has no image.")
    from urllib.request import urlopen  # slow to load, and few answers need it

    try:
        with urlopen(url, timeout=_FETCH_TIMEOUT) as response:
            content: bytes = response.read()
    except OSError as error:  # urllib's own errors are such
        raise UpstreamBroken(f"The image at {url} could not be fetched: {error}.") from None
    return content
