"""What a fake vendor has to offer to the conformance suite.

A *script* is a list of neutral events (``byzerllm.wire.events``) without ``Started``: pieces of text, reasoning and
tool calls, then ``Tokens`` and ``Finish``. The fake says it in its vendor's format, as that vendor would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from byzerllm.wire.events import Event

Script = Sequence[Event]


@dataclass(frozen=True)
class VendorError:
    """An error answer: status, headers and body as the vendor sends them."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FakeVendor:
    """One vendor's side of a wire format.

    ``deploy``: the flags that deploy an instance of it, with ``{url}`` for the fake's address. ``supports``: which of
    reasoning, tools, usage and length (it tells when an answer was cut at max_tokens) the format has.
    """

    wire: str
    deploy: tuple[str, ...]
    supports: frozenset[str]
    stream: Callable[[Script], bytes]  # a whole streamed answer
    answer: Callable[[Script], bytes]  # a whole answer that is not streamed
    error: Callable[[int, str, str], VendorError]  # status, vendor's code, message
    error_in_answer: Callable[[str, str], bytes] | None = None  # inside a 200 answer, where the vendor does that
    error_in_stream: Callable[[Script, str, str], bytes] | None = None  # the script's pieces, then an error
    stream_type: str = "text/event-stream"
    ends_by_itself: bool = True  # false: the end of the connection is the end of the stream, nothing marks it
    paths: tuple[str, ...] = ()  # prefixes of the request paths it expects, for the end-to-end test
