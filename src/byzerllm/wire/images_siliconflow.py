"""SiliconFlow's images: fields and answer of its own, on OpenAI's path. Facts: docs.siliconflow.com.

The answer has addresses that expire within the hour; who asks for ``b64_json`` gets the images themselves.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from byzerllm.errors import InvalidInput, UpstreamBroken, UpstreamError
from byzerllm.wire.base import BAD_JSON, Outgoing, Request, Task, Vendor
from byzerllm.wire.media import JSON, Download
from byzerllm.wire.openai import parse_error

_OWN = frozenset(
    ("image", "image_size", "batch_size", "num_inference_steps", "guidance_scale", "negative_prompt", "seed", "cfg")
)
_RENAMED = {"size": "image_size", "n": "batch_size"}


class _Image(msgspec.Struct):
    url: str


class _Reply(msgspec.Struct):
    images: list[_Image]


class SiliconFlowImages:
    name = "images_siliconflow"
    tasks = frozenset((Task.IMAGE,))

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        try:
            fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(request.fields))
        except BAD_JSON as error:
            raise InvalidInput(f"The request for images cannot be read: {error}.") from None
        body: dict[str, Any] = {"model": vendor.model, "prompt": fields.pop("prompt", None)}
        if not isinstance(body["prompt"], str):
            raise InvalidInput("'prompt' is missing: say what the image is to show.", param="prompt")
        if fields.pop("response_format", None) not in (None, "url", "b64_json"):
            raise InvalidInput("response_format is none of url, b64_json.", param="response_format")
        for name, value in fields.items():
            if name in ("model", "user") or value is None:
                continue
            if name not in _OWN and name not in _RENAMED:
                vendor.needs(name, name)
            body[_RENAMED.get(name, name)] = value
        return Outgoing("/images/generations", msgspec.json.encode(body))

    def decoder(self, request: Request, now: int) -> _Decoder:
        return _Decoder(now, as_data=bytes(request.fields.get("response_format", b"")) == b'"b64_json"')

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return parse_error(status, headers, body)


class _Decoder:
    content_type = JSON

    def __init__(self, now: int, *, as_data: bool) -> None:
        self._now = now
        self._as_data = as_data
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        self._parts.append(data)
        return b""

    def close(self) -> bytes | Download:
        try:
            reply = msgspec.json.decode(b"".join(self._parts), type=_Reply)
        except BAD_JSON as error:
            raise UpstreamBroken(f"SiliconFlow's answer is not of its form: {error}.") from None
        urls = [image.url for image in reply.images]
        if self._as_data:
            return Download(urls, self._with_data)
        return self._answer("url", urls)

    def _with_data(self, files: Sequence[bytes]) -> bytes:
        return self._answer("b64_json", [base64.b64encode(file).decode() for file in files])

    def _answer(self, name: str, values: Sequence[str]) -> bytes:
        return msgspec.json.encode({"created": self._now, "data": [{name: value} for value in values]})
