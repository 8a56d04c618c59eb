"""The seam for a wire format: pure functions between bytes and what routing and accounting need to know.

A format is one file beside this one and one line in ``wire/__init__.py``. Nothing here does I/O or reads a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from byzerllm.errors import InvalidInput, UpstreamError

if TYPE_CHECKING:
    from byzerllm.wire.events import Event, StreamDecoder

Headers = Sequence[tuple[bytes, bytes]]


class Task(str, Enum):
    """What a request asks for; each client surface maps its paths to one."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RERANK = "rerank"
    SCORE = "score"
    RESPONSES = "responses"
    SPEECH = "speech"
    TRANSCRIPTION = "transcription"
    IMAGE = "image"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"


class Usage(NamedTuple):
    """Tokens as the upstream counted them."""

    prompt: int
    completion: int


class StreamEnd(Enum):
    """How a stream's last bytes look."""

    COMPLETE = "complete"
    ERROR = "error"  # the upstream reported an error inside the stream
    TRUNCATED = "truncated"  # it simply stopped


class Request:
    """A client's request of which only the routing fields are decoded; every other value stays as it was sent."""

    __slots__ = ("fields", "model", "stream", "task")

    def __init__(self, task: Task, fields: dict[str, msgspec.Raw], model: str, stream: bool) -> None:
        self.task = task
        self.fields = fields
        self.model = model
        self.stream = stream


BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for what is no JSON of the wanted form: bytes that are no UTF-8 and endless nesting included."""

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRING = msgspec.json.Decoder(str)
_encode = msgspec.json.encode


def decode_request(task: Task, body: bytes, *, served_model: str | None = None) -> Request:
    """Read ``model`` and ``stream`` from an OpenAI-shaped body and leave the rest raw. ``served_model`` is taken
    whatever the body names.

    Raises:
        InvalidInput: no JSON object, or ``model`` or ``stream`` is of the wrong kind.
    """
    try:
        fields = _FIELDS.decode(body)
    except BAD_JSON as error:
        raise InvalidInput(f"The request body is no JSON object: {error}.") from None
    raw_model = fields.get("model")
    try:
        model = _STRING.decode(raw_model) if raw_model is not None else None
    except BAD_JSON:
        raise InvalidInput("'model' must be a string.", param="model") from None
    model = served_model or model
    if not model:
        raise InvalidInput("'model' is missing: name the instance to call.", param="model")
    stream = bytes(fields.get("stream", b"false"))
    if stream not in (b"true", b"false", b"null"):
        raise InvalidInput("'stream' must be true or false.", param="stream")
    return Request(task, fields, model, stream == b"true")


def with_model(request: Request, model: str, defaults: Mapping[str, msgspec.Raw]) -> bytes:
    """The request's body with the upstream's model name; every other value keeps its bytes.

    ``defaults`` are fields that the instance's owner set and that hold where the client did not say otherwise.
    """
    fields = {**defaults, **request.fields}
    fields["model"] = msgspec.Raw(_encode(model))
    return _encode(fields)


class Vendor(msgspec.Struct, frozen=True):
    """What a format needs to know of the instance whose request it encodes. ``title`` is for messages to people,
    ``params`` are the vendor's own parameters without ``saas.``, ``capabilities`` what its table says it can do, and
    ``models`` facts about its models by the beginning of their names (the longest that fits is meant). ``asks_usage``:
    streams are asked for their tokens where the client does not (``stream_usage.py``)."""

    model: str
    title: str = "This vendor"
    params: dict[str, str] = {}
    capabilities: frozenset[str] = frozenset()
    models: dict[str, dict[str, Any]] = {}
    asks_usage: bool = False

    def fact(self, name: str) -> Any:
        """What the table says of the instance's model under that name, or None."""
        fitting = sorted((p for p in self.models if self.model.startswith(p)), key=len, reverse=True)
        return next((self.models[p][name] for p in fitting if name in self.models[p]), None)

    def needs(self, capability: str, field: str) -> None:
        """Refuse a field that the vendor has nothing for, instead of dropping it.

        Raises:
            InvalidInput: names field and vendor.
        """
        if capability not in self.capabilities:
            raise InvalidInput(f"{self.title} has no {capability}: leave out '{field}'.", param=field)


class Outgoing(NamedTuple):
    """A request in an upstream's format. ``path`` is below the base URL, escaped, with its query."""

    path: str
    body: bytes
    headers: Mapping[str, str] = {}


class Step(NamedTuple):
    """One exchange with an upstream; ``path`` is below the base URL."""

    method: str
    path: str
    body: bytes = b""


Steps = Generator[Step, bytes, bytes]
"""An answer that takes several exchanges, or other bytes than the client's: each step is sent the upstream's answer to
it, and what is returned is the client's."""

Adapter = Callable[["Request", str, int], "Steps | None"]
"""From a request, the upstream's name of the model and the Unix time to its steps. None: this one may pass through.
Raises ``InvalidInput`` for what the upstream cannot do."""


class Translator(Protocol):
    """A format that is not OpenAI's: requests are decoded and encoded anew, answers go through neutral events."""

    name: str
    tasks: frozenset[Task]

    def request(self, request: Request, vendor: Vendor) -> Outgoing:
        """The upstream's form of the request.

        Raises:
            InvalidInput: it asks for what the vendor cannot do, or is malformed.
        """
        ...

    def stream(self) -> StreamDecoder:
        """A decoder for one streamed chat answer."""
        ...

    def events(self, body: bytes) -> list[Event]:
        """The events of a whole chat answer; an error inside a 200 answer is a ``Failure``."""
        ...

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """What the upstream's error answer says, with its own status, code, message and request id."""
        ...


@runtime_checkable
class EmbeddingTranslator(Translator, Protocol):
    """A format that has embeddings as well as chats, and says so in its ``tasks``."""

    def embeddings(self, body: bytes) -> tuple[list[list[float]], int]:
        """The vectors of an embedding answer, in the order of the inputs, and the prompt's tokens (0: not said).

        Raises:
            UpstreamError: the answer reports an error, or is none.
        """
        ...


@runtime_checkable
class FrameTranslator(Translator, Protocol):
    """A format of a websocket: a request is one text frame, and the answer's bytes are text frames, each ended by a
    line feed. Where the base URL has a path of its own the request's is left out."""

    def is_last(self, frame: bytes) -> bool:
        """Whether nothing follows this frame, so that the connection can be closed."""
        ...


class Wire(Protocol):
    """A format that clients speak too: bodies pass through, only the model's name is exchanged."""

    name: str

    def path(self, task: Task) -> str | None:
        """The path under the upstream's base URL, or None where the format has no such task."""
        ...

    def body(self, request: Request, model: str, defaults: Mapping[str, msgspec.Raw]) -> bytes:
        """The upstream request's body; ``defaults`` are top-level fields for what the client left open."""
        ...

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """What the upstream's error answer says, with its own status, code, message and request id."""
        ...

    def failure(self, answer: bytes) -> UpstreamError | None:
        """The error that an answer of status 200 reports: a whole one, or what has come of a stream. None: no error."""
        ...

    def usage(self, tail: bytes) -> Usage | None:
        """Tokens, from the last bytes of an answer or stream; None when it does not say."""
        ...

    def stream_end(self, tail: bytes, task: Task) -> StreamEnd:
        """Whether a stream that answered such a task and ended with these bytes is whole."""
        ...

    @property
    def adapters(self) -> Mapping[Task, Adapter]:
        """For the tasks where the format is not quite the clients'."""
        ...
