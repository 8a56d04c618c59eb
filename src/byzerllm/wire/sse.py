"""Server-sent events as vendors really send them, pure.

Line ends are LF, CRLF or CR; ``data:`` comes with and without a space; several data lines make one event; comments and
unknown fields are skipped; a last event without its empty line counts. (html.spec.whatwg.org, 9.2.6)
"""

from __future__ import annotations

from typing import NamedTuple


class ServerSentEvent(NamedTuple):
    """``name`` is the ``event`` field, ``comment`` the last comment before the data (DashScope's status is in one)."""

    data: bytes
    name: bytes = b""
    comment: bytes = b""


class SseReader:
    """Splits bytes into events, however they are cut."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # of a line that has not ended
        self._data: list[bytes] = []
        self._name = b""
        self._comment = b""

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that these bytes complete."""
        if b"\n" not in data and b"\r" not in data:
            self._rest.append(data)
            return []
        if self._rest:
            data = b"".join((*self._rest, data))
        if b"\r" in data:
            if data.endswith(b"\r"):  # its LF may be the next byte
                data, held = data[:-1], b"\r"
            else:
                held = b""
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        lines = data.split(b"\n")
        self._rest = [lines.pop()]
        return self._lines(lines)

    def close(self) -> list[ServerSentEvent]:
        """The event that the end of the body completes, if one was begun."""
        rest, self._rest = b"".join(self._rest).rstrip(b"\r"), []
        return self._lines([rest, b""] if rest else [b""])

    def _lines(self, lines: list[bytes]) -> list[ServerSentEvent]:
        events: list[ServerSentEvent] = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(ServerSentEvent(b"\n".join(self._data), self._name, self._comment))
                self._data, self._name, self._comment = [], b"", b""
                continue
            field, _, value = line.partition(b":")
            if value.startswith(b" "):
                value = value[1:]
            if field == b"data":
                self._data.append(value)
            elif field == b"event":
                self._name = value
            elif not field:
                self._comment = value
        return events
