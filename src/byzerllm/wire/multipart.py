"""A multipart form (RFC 7578) of which only the part ``model`` is read and exchanged; files are not looked into.

Strict on purpose: whatever two readers could understand in two ways is refused, since the upstream reads it too.
"""

from __future__ import annotations

import re

from byzerllm.errors import InvalidInput
from byzerllm.wire.base import Request, Task

_TYPE = re.compile(rb"multipart/form-data\s*;", re.IGNORECASE)
_BOUNDARY = re.compile(rb""";\s*boundary=(?:"([\w'()+,./:=? -]{1,70})"|([\w'+./-]{1,70}))\s*(?:;|$)""", re.IGNORECASE)
_PARAM = re.compile(rb';\s*([^=;\s]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
_MAX_PARTS = 64
_MAX_PART_HEAD = 8192
_MODEL = b'Content-Disposition: form-data; name="model"\r\n\r\n'


class Form(Request):
    """A request that came as a form."""

    __slots__ = ("_body", "_boundary", "_span")

    def __init__(self, task: Task, model: str, body: bytes, boundary: bytes, span: tuple[int, int] | None) -> None:
        super().__init__(task, {}, model, False)
        self._body = body
        self._boundary = boundary
        self._span = span  # where the model's name is; None: the form has none

    @property
    def content_type(self) -> bytes:
        return b'multipart/form-data; boundary="%b"' % self._boundary

    def pieces(self, model: str) -> tuple[bytes | memoryview, ...]:
        """The body with the upstream's model name, in pieces that are to be joined once."""
        name = model.encode()
        if self._span is None:
            return b"--%b\r\n%b%b\r\n" % (self._boundary, _MODEL, name), self._body
        body, (start, end) = memoryview(self._body), self._span
        return body[:start], name, body[end:]


def decode_form(task: Task, content_type: bytes, body: bytes, *, served_model: str | None = None) -> Form:
    """Find the model's name in a form. ``served_model`` is taken whatever the form names.

    Raises:
        InvalidInput: no form, a malformed one, or one without a model or with several.
    """
    found = _BOUNDARY.search(content_type) if _TYPE.match(content_type) else None
    if found is None:
        raise InvalidInput("The request must be a form: Content-Type: multipart/form-data; boundary=...")
    boundary = found[1] or found[2]
    span = _find_model(body, b"--" + boundary)
    try:
        model = body[slice(*span)].decode() if span is not None else ""
    except UnicodeDecodeError:
        raise InvalidInput("'model' must be UTF-8 text.", param="model") from None
    model = served_model or model
    if not model:
        raise InvalidInput("'model' is missing: name the instance to call.", param="model")
    return Form(task, model, body, boundary, span)


def _find_model(body: bytes, delimiter: bytes) -> tuple[int, int] | None:
    """Where the content of the part ``model`` begins and ends."""
    if not body.startswith(delimiter):
        raise _malformed("it does not begin with its boundary")
    span: tuple[int, int] | None = None
    position = len(delimiter)
    for _ in range(_MAX_PARTS):
        if body[position : position + 2] == b"--":
            if body[position + 2 : position + 5] not in (b"", b"\r\n"):
                raise _malformed("something follows its end")
            return span
        if body[position : position + 2] != b"\r\n":
            raise _malformed("something follows a boundary")
        head_end = body.find(b"\r\n\r\n", position, position + _MAX_PART_HEAD)
        if head_end < 0:
            raise _malformed("a part has no end of its headers")
        end = body.find(b"\r\n" + delimiter, head_end + 4)
        if end < 0:
            raise _malformed("its last boundary is missing")
        if _name(body[position + 2 : head_end]) == b"model":
            if span is not None:
                raise _malformed("it has several parts named 'model'")
            span = head_end + 4, end
        position = end + 2 + len(delimiter)
    raise _malformed(f"it has more than {_MAX_PARTS} parts")


def _name(head: bytes) -> bytes:
    for line in head.split(b"\r\n"):
        header, _, value = line.partition(b":")
        if header.strip().lower() == b"content-disposition":
            named = {key.lower(): text for key, text in _PARAM.findall(value)}
            if b"name" in named:
                return bytes(named[b"name"]).strip(b' \t"')
    raise _malformed("a part has no name")


def _malformed(what: str) -> InvalidInput:
    return InvalidInput(f"The form is malformed: {what}.")
