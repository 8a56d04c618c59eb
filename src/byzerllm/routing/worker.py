"""A worker as routing sees it: an endpoint with slots, whether a vendor or an engine of ours is behind it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from byzerllm.relay.target import Target, header_lines, request_head
from byzerllm.spec import Timeouts
from byzerllm.wire.base import Outgoing, Task, Translator, Vendor, Wire

Sign = Callable[[str, bytes], Awaitable[tuple[str, Mapping[str, str]]]]
"""From path and body to the path to send and the headers to add: signatures, tokens that expire."""


@dataclass(frozen=True)
class Upstream:
    """Where requests go. The workers that share an address and a key share one; nothing else is shared."""

    target: Target
    model: str
    timeouts: Timeouts
    max_retries: int


@dataclass(frozen=True)
class PassThrough(Upstream):
    """An upstream that speaks what clients speak. ``heads`` has a request head a task, ready but for the length."""

    wire: Wire
    heads: Mapping[Task, bytes]
    defaults: Mapping[str, msgspec.Raw] = field(default_factory=dict)

    def request(self, task: Task, body: bytes) -> bytes:
        """The whole request as it goes over the wire."""
        return b"%b%d\r\n\r\n%b" % (self.heads[task], len(body), body)


@dataclass(frozen=True)
class Translated(Upstream):
    """An upstream with a format of its own. ``prefix`` and ``lines`` (headers, each ended) make the request's head;
    ``sign`` adds what depends on the request or the time."""

    wire: Translator
    vendor: Vendor
    prefix: str
    lines: bytes
    sign: Sign | None = None

    async def request(self, outgoing: Outgoing) -> bytes:
        """The whole request as it goes over the wire.

        Raises:
            UpstreamError: a credential that has to be fetched could not be.
        """
        path, lines = self.prefix + outgoing.path, self.lines + header_lines(outgoing.headers)
        if self.sign is not None:
            path, signed = await self.sign(path, outgoing.body)
            lines += header_lines(signed)
        head = request_head("POST", self.target, path, lines)
        return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(outgoing.body), outgoing.body)


class Worker:
    """Slot record of one worker. Only ``Instance`` changes it.

    ``assigned`` is the number of the last assignment in the instance (0: never), so that "least recently assigned"
    needs no clock; ``assigned_at`` is the time of it, for people.
    """

    __slots__ = (
        "active",
        "assigned",
        "assigned_at",
        "capacity",
        "failures",
        "id",
        "index",
        "open_until",
        "probing",
        "progress",
        "requests",
        "retired",
        "ticket",
        "up",
        "upstream",
    )

    def __init__(self, index: int, id: str, capacity: int, upstream: Upstream, now: float) -> None:
        self.index = index
        self.id = id
        self.capacity = capacity
        self.upstream = upstream
        self.active = 0
        self.assigned = 0
        self.assigned_at = now
        self.requests = 0
        self.up = True  # its endpoint can be used; false while its engine restarts
        self.retired = False  # drains: no new lease
        self.failures = 0  # in a row, for the breaker
        self.open_until = 0.0  # the breaker keeps it out of rotation until then
        self.probing = False  # half-open: one request at a time shows whether it is well again
        self.progress = 0  # grows with every piece of an answer: a sign of life
        self.ticket = 0  # its newest entry in the policy's heap

    @property
    def in_rotation(self) -> bool:
        return self.up and not self.retired and not self.open_until

    @property
    def free(self) -> int:
        """Free slots: what it may be given now."""
        if not self.in_rotation:
            return 0
        return max((1 if self.probing else self.capacity) - self.active, 0)
