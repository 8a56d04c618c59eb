"""The seam for an engine: how it is launched, what its parameters are and how it shows that it is ready.

A new engine is one file beside this one and one line in ``engines/__init__.py``. Everything that is launched speaks the
OpenAI HTTP API on the private address it is given and accepts only the private token it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from byzerllm.spec import DeploymentSpec


@dataclass(frozen=True)
class EngineOptions:
    """An engine's parameters, checked and typed: what ``Engine.parse`` makes and ``Engine.command`` takes.

    ``slots`` is how many requests one worker answers at a time; ``task`` is what it answers: ``chat`` (chat and text
    completions) or ``embedding``. ``values`` are the engine's own options by its own names.
    """

    model_path: str
    slots: int
    task: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Launch:
    """How one worker's process is started. ``argv`` holds no secret; ``env`` is added to the server's environment.

    ``ready_path`` and ``ready_body`` are the POST that proves that it works (one generated token, one embedding).
    ``ready_timeout`` is in seconds, counted from the start of the process.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    ready_path: str
    ready_body: bytes
    ready_timeout: float = 600.0


class Engine(Protocol):
    """One way to run private weights. Implementations are stateless and do no I/O except in ``check``."""

    name: str
    secret_params: frozenset[str]

    def parse(self, spec: DeploymentSpec) -> EngineOptions:
        """Check the parameters of ``spec``.

        Raises:
            InvalidInput: an unknown parameter (the nearest known one is named) or a value of the wrong kind.
        """
        ...

    def check(self, options: EngineOptions) -> None:
        """Look at what can be seen without starting: is the engine installed, is the model there and whole?

        Reads the disk and may block for some milliseconds; callers in an event loop use a thread.

        Raises:
            EngineMissing: names the extra to install.
            InvalidInput: the model path does not exist, or is not what the engine reads.
        """
        ...

    def command(self, options: EngineOptions, host: str, port: int, token: str) -> Launch:
        """The process of one worker that listens on ``host``:``port`` and requires ``token``."""
        ...
