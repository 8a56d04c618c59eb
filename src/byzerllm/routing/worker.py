"""A worker as routing sees it: an endpoint with slots, whether a vendor or an engine of ours is behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from byzerllm.relay.target import Target
from byzerllm.spec import Timeouts
from byzerllm.wire.base import Task, Wire


@dataclass(frozen=True)
class Upstream:
    """Where and how requests go; the workers of a SaaS instance share one. ``heads`` has a request head a task,
    ready but for the body's length."""

    wire: Wire
    target: Target
    model: str
    timeouts: Timeouts
    max_retries: int
    heads: Mapping[Task, bytes]
    defaults: Mapping[str, msgspec.Raw] = field(default_factory=dict)

    def request(self, task: Task, body: bytes) -> bytes:
        """The whole request as it goes over the wire."""
        return b"%b%d\r\n\r\n%b" % (self.heads[task], len(body), body)


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
