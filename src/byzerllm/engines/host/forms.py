"""The parts of a multipart form (RFC 7578), which has passed the gateway's strict check before."""

from __future__ import annotations

import re
from typing import NamedTuple

from byzerllm.errors import InvalidInput

_BOUNDARY = re.compile(rb';\s*boundary=(?:"([^"]+)"|([^;\s]+))', re.IGNORECASE)
_NAME = re.compile(rb';\s*name="?([^";\r\n]*)"?', re.IGNORECASE)
_FILE = re.compile(rb';\s*filename="?([^";\r\n]*)"?', re.IGNORECASE)


class Form(NamedTuple):
    """Texts by name, several under one name in their order; files as their bytes."""

    texts: dict[str, list[str]]
    files: dict[str, bytes]


def read_form(content_type: bytes, body: bytes) -> Form:
    """Take a form apart.

    Raises:
        InvalidInput: it is none, or a text in it is no UTF-8.
    """
    boundary = _BOUNDARY.search(content_type)
    if boundary is None or not content_type.lower().startswith(b"multipart/form-data"):
        raise InvalidInput("The request must be a form: Content-Type: multipart/form-data; boundary=...")
    form = Form({}, {})
    for part in (b"\r\n" + body).split(b"\r\n--" + (boundary[1] or boundary[2]))[1:]:
        head, _, content = part.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if name is None:
            continue
        key = name[1].decode("utf-8", "replace")
        if _FILE.search(head):
            form.files[key] = content
            continue
        try:
            form.texts.setdefault(key, []).append(content.decode())
        except UnicodeDecodeError:
            raise InvalidInput(f"'{key}' is no UTF-8 text.", param=key) from None
    return form
