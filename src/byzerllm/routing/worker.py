"""A worker as routing sees it: an endpoint with slots, whether a vendor or an engine of ours is behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from byzerllm.errors import InvalidInput, UpstreamError
from byzerllm.relay.connection import Exchange
from byzerllm.relay.pool import Pool
from byzerllm.relay.target import Target, header_lines, merged, request_head, standard_headers
from byzerllm.spec import Timeouts
from byzerllm.wire.base import BAD_JSON, FrameTranslator, Outgoing, Step, Task, Translator, Vendor, Wire
from byzerllm.wire.media import MediaFormat
from byzerllm.wire.multipart import Form

Sign = Callable[[str, bytes], Awaitable[tuple[str, Mapping[str, str]]]]
"""From path and body to the path to send and the headers to add: signatures, tokens that expire."""

Renew = Callable[[UpstreamError], bool]
"""Whether the error says that a token has expired; ``Sign`` fetches another one then, and the request can be tried once
more."""


@dataclass(frozen=True)
class Upstream(ABC):
    """Where requests go. The workers that share an address and a key share one; nothing else is shared. ``secrets``
    are starred wherever the vendor repeats one in an error. ``watched``: it is an engine of ours, whose process and
    probes say whether it is well."""

    target: Target
    model: str
    timeouts: Timeouts
    max_retries: int
    secrets: tuple[str, ...] = field(default=(), repr=False, kw_only=True)
    watched: bool = field(default=False, kw_only=True)

    @property
    @abstractmethod
    def tasks(self) -> Collection[Task]:
        """What it can be asked for."""


@dataclass(frozen=True)
class PassThrough(Upstream):
    """An upstream that speaks what clients speak. ``heads`` has a request head a task, ready but for the length;
    ``lines`` are the headers of a request that its format makes in steps; ``asks_usage``: streams are asked for their
    tokens where the client does not."""

    wire: Wire
    heads: Mapping[Task, bytes] = field(repr=False)
    defaults: Mapping[str, msgspec.Raw] = field(default_factory=dict)
    lines: bytes = field(default=b"", repr=False)
    asks_usage: bool = False

    @property
    def tasks(self) -> Collection[Task]:
        return self.heads.keys()

    def request(self, task: Task, body: bytes) -> bytes:
        """The whole request as it goes over the wire."""
        return b"%b%d\r\n\r\n%b" % (self.heads[task], len(body), body)

    def step(self, step: Step) -> bytes:
        """The same for one step of several."""
        head = request_head(step.method, self.target, step.path, self.lines)
        return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(step.body), step.body)

    def form(self, form: Form) -> bytes:
        """The same for a request that is a form."""
        pieces = form.pieces(self.model)
        rest = b"%d\r\nContent-Type: %b\r\n\r\n" % (sum(map(len, pieces)), form.content_type)
        return b"".join((self.heads[form.task], rest, *pieces))


@dataclass(frozen=True)
class Foreign(Upstream):
    """An upstream with a format of its own. ``prefix``, ``query`` and ``headers`` (the key and the owner's own, which
    go before the format's) make a request's head; ``defaults`` are top-level fields for what the format left open;
    ``sign`` adds what depends on the request or the time; ``task`` is what the model is for."""

    vendor: Vendor = field(repr=False)
    task: Task
    prefix: str
    headers: Mapping[str, str] = field(repr=False)
    query: str = field(default="", repr=False)
    defaults: Mapping[str, msgspec.Raw] = field(default_factory=dict)
    sign: Sign | None = None
    renew: Renew | None = None

    async def request(self, outgoing: Outgoing) -> bytes:
        """The whole request as it goes over the wire.

        Raises:
            UpstreamError: a credential that has to be fetched could not be.
            InvalidInput: there are ``defaults``, and the format's bodies are no JSON objects.
        """
        path, headers, body = await self._signed(outgoing)
        head = request_head("POST", self.target, path, header_lines(headers))
        return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)

    async def _signed(self, outgoing: Outgoing) -> tuple[str, dict[str, str], bytes]:
        path, body = self.prefix + outgoing.path, outgoing.body
        standard = {**standard_headers(self.target), "Content-Type": "application/json"}
        headers = merged(standard, outgoing.headers, self.headers)
        if self.query:
            path += ("&" if "?" in path else "?") + self.query
        if self.defaults:
            body = self._completed(body)
        if self.sign is not None:
            path, signed = await self.sign(path, body)
            headers = merged(headers, signed)
        return path, headers, body

    def _completed(self, body: bytes) -> bytes:
        try:
            fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        except BAD_JSON:
            raise InvalidInput(f"{self.vendor.title} takes no JSON: deploy it without saas.extra_body.") from None
        return msgspec.json.encode({**self.defaults, **fields})


@dataclass(frozen=True, kw_only=True)
class Translated(Foreign):
    """One that answers chats and the like."""

    wire: Translator

    @property
    def tasks(self) -> Collection[Task]:
        alone = self.task is not Task.CHAT and self.task in self.wire.tasks
        return (self.task,) if alone else self.wire.tasks

    async def open(self, pool: Pool, outgoing: Outgoing) -> Exchange:
        """Send the request and wait for the head of its answer. The caller must give the exchange back to the pool.

        Raises:
            UpstreamError: see ``Pool.exchange`` and ``request``.
        """
        return await pool.exchange(self.target, await self.request(outgoing), self.timeouts)


@dataclass(frozen=True, kw_only=True)
class Framed(Translated):
    """One behind a websocket. An address that has a path of its own is taken as it is."""

    wire: FrameTranslator

    async def open(self, pool: Pool, outgoing: Outgoing) -> Exchange:
        from byzerllm.relay.websocket import WebSocket  # a library that most servers never need

        if self.prefix:
            outgoing = outgoing._replace(path="")
        path, headers, body = await self._signed(outgoing)
        socket = WebSocket(self.target, self.timeouts, self.wire.is_last)
        await socket.open(path, headers, body)
        return socket


@dataclass(frozen=True, kw_only=True)
class Media(Foreign):
    """One that makes sound or images."""

    wire: MediaFormat

    @property
    def tasks(self) -> Collection[Task]:
        return (self.task,)


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
