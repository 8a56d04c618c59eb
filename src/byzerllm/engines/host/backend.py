"""The seam between HTTP and the models: what the host asks a model for, and in what form it gets it.

Nothing here knows torch, and nothing behind it knows HTTP. A model has one task, and with it one of these protocols.
All methods are coroutines that leave the event loop free; one that is cancelled stops its work within a token or a
batch.
They raise ``InvalidInput`` for what the model cannot do.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from byzerllm.errors import ContextExceeded


@dataclass(frozen=True)
class JsonSchema:
    """The answer is JSON that keeps to a schema, here as JSON text."""

    text: str


class Function(NamedTuple):
    """A function that a model may call; ``parameters`` is the schema of its arguments, an object.

    Of a schema that is not ``strict`` the keywords that cannot be kept are left out of account.
    """

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False


@dataclass(frozen=True)
class ForcedCalls:
    """The answer is a call of one of the functions, or with ``several`` any number of calls, in one of the formats of
    ``tool_calls.py``; their arguments keep to the functions' schemas."""

    format: str
    functions: tuple[Function, ...]
    several: bool


Structure = JsonSchema | ForcedCalls


@dataclass(frozen=True)
class Sampling:
    """How a next token is chosen, in OpenAI's and vLLM's terms.

    ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off. ``repetition_penalty`` counts the
    prompt too, ``presence_penalty`` and ``frequency_penalty`` only the answer. ``alternatives`` is how many likely
    tokens are reported beside each one, None: no probabilities at all. ``structure`` is what the answer keeps to.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    alternatives: int | None = None
    structure: Structure | None = None


@dataclass(frozen=True)
class Prompt:
    """The tokens of a prompt; ``inputs`` is what goes beside them into the model (the pixels of images)."""

    ids: list[int]
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One text to generate. None of ``end_ids`` comes before ``min_tokens`` tokens; the one that ends it is told."""

    prompt: Prompt
    max_tokens: int
    end_ids: frozenset[int]
    sampling: Sampling
    min_tokens: int = 0


class Likely(NamedTuple):
    """A token and the logarithm of its probability."""

    id: int
    logprob: float


class Token(NamedTuple):
    """One generated token; ``logprob`` and ``top`` are filled when probabilities were asked for."""

    id: int
    logprob: float = 0.0
    top: tuple[Likely, ...] = ()


class TextModel(Protocol):
    """A model that generates text. ``context`` is its longest sequence in tokens, into which at most ``characters`` of
    text go; its tokens are the numbers below ``vocabulary``, and ``end_ids`` are what ends an answer. ``defaults`` are
    the sampling values that its publisher recommends. ``tool_format`` names how it writes tool calls (see
    ``tool_calls.py``), None if that is not known."""

    context: int
    characters: int
    vocabulary: int
    end_ids: frozenset[int]
    defaults: Sampling
    tool_format: str | None

    async def encode(self, text: str, *, special: bool) -> list[int]:
        """The tokens of a text, with those that the model puts around every text if ``special``."""
        ...

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; control tokens are left out unless ``special``."""
        ...

    async def chat_prompt(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> Prompt:
        """The messages in the model's own chat template; ``options`` are variables of the template.

        Raises:
            InvalidInput: there is no template, or it does not take such messages.
        """
        ...

    def generate(self, job: Job) -> AsyncGenerator[Token, None]:
        """The tokens as they come. Closing the generator ends the work."""
        ...


class Vectors(NamedTuple):
    """An embedding for each text, and the number of tokens read."""

    rows: list[list[float]]
    tokens: int


class Embedder(Protocol):
    """Into ``context`` tokens, the longest text that it reads, go at most ``characters``."""

    context: int
    characters: int

    async def embed(self, texts: list[str] | list[list[int]], dimensions: int | None) -> Vectors:
        """One vector for each text, or for each list of tokens."""
        ...


class Scores(NamedTuple):
    """One relevance for each pair, and the number of tokens read."""

    values: list[float]
    tokens: int


class Reranker(Protocol):
    """``context`` and ``characters`` are as of an ``Embedder``, for both texts of a pair together."""

    context: int
    characters: int

    async def score(self, pairs: list[tuple[str, str]]) -> Scores:
        """How well the second text of each pair answers the first: 0 to 1, or any number for a model without such."""
        ...


class Segment(NamedTuple):
    """A piece of a transcript or one of its words, in seconds from the beginning."""

    start: float
    end: float
    text: str


class Transcript(NamedTuple):
    text: str
    segments: list[Segment]
    language: str | None
    duration: float
    words: Sequence[Segment] = ()


@dataclass(frozen=True)
class Recording:
    """A sound to write down; ``temperature`` 0 is greedy. ``timestamps``: the segments are wanted, and ``words``: the
    words with their times."""

    data: bytes
    language: str | None = None
    prompt: str | None = None
    temperature: float = 0.0
    timestamps: bool = False
    words: bool = False


class Transcriber(Protocol):
    async def transcribe(self, recording: Recording) -> Transcript: ...


class Sound(NamedTuple):
    """Samples between -1 and 1 of one channel, as little-endian 32-bit floats."""

    samples: bytes
    rate: int


class Speaker(Protocol):
    async def speak(self, text: str, voice: str | None, speed: float) -> Sound: ...


@dataclass(frozen=True)
class Picture:
    """An image to make. Steps and guidance are the model's own where None."""

    prompt: str
    width: int | None = None
    height: int | None = None
    negative: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    count: int = 1


class Painter(Protocol):
    async def paint(self, picture: Picture) -> list[bytes]:
        """PNG files, one for each image."""
        ...


def room(context: int, prompt: int, wanted: int | None) -> int:
    """How many tokens may be generated: ``wanted``, or all that the context leaves.

    Raises:
        ContextExceeded: with the numbers.
    """
    left = context - prompt
    if left < 1:
        raise ContextExceeded(
            f"The prompt is {prompt} tokens long; the model reads at most {context}.", param="messages"
        )
    if wanted is not None and wanted > left:
        raise ContextExceeded(
            f"The prompt is {prompt} tokens long and {wanted} more were asked for: together {prompt + wanted}, and the "
            f"model's context is {context}.",
            hint=f"Ask for at most {left}.",
            param="max_tokens",
        )
    return left if wanted is None else wanted
