"""The seam for an engine: how it is launched, what its parameters are and how it shows that it is ready.

A new engine is one file beside this one and one line in ``engines/__init__.py``. Everything that is launched speaks the
OpenAI HTTP API on the private address it is given and accepts only the private token it is given.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from byzerllm.wire.base import Task

if TYPE_CHECKING:
    from byzerllm.spec import DeploymentSpec


@dataclass(frozen=True)
class EngineOptions:
    """An engine's parameters, checked and typed: what ``Engine.parse`` makes and ``Engine.command`` takes.

    ``slots`` is how many requests one worker answers at a time; ``tasks`` is what it answers, the main one first.
    ``values`` are the engine's own options by its own names. ``warnings`` are told to whoever deploys. ``python`` is
    the interpreter of the environment that the engine is installed in. ``wire`` names the format that its server
    speaks (``wire/__init__.py``).
    """

    model_path: str
    slots: int
    tasks: tuple[Task, ...]
    values: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    python: str = sys.executable
    wire: str = "engine"

    @property
    def task(self) -> Task:
        """The main one."""
        return self.tasks[0]


@dataclass(frozen=True)
class Memory:
    """What one worker needs to load and serve, in bytes; 0 where it cannot be known beforehand.

    ``on_gpu`` says which memory is meant; ``shares`` is the number of devices that it is divided among. ``mapped``: the
    weights are mapped from their file, so that the workers of one machine have them once. ``host``: what a worker on
    GPUs takes of the machine's memory while it loads.
    """

    weights: int
    cache: int
    on_gpu: bool
    shares: int = 1
    mapped: bool = False
    host: int = 0


@dataclass(frozen=True)
class Launch:
    """How one worker's process is started. ``argv`` holds no secret; ``env`` is added to the server's environment.

    ``ready_path`` and ``ready_body`` are the POST that proves that it works (one generated token, one embedding).
    ``ready_timeout`` is in seconds, counted from the start of the process: weights may have to come from the hub or a
    slow disk first, and a process that ends is noticed at once.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    ready_path: str
    ready_body: bytes
    ready_timeout: float = 3600.0


class Engine(Protocol):
    """One way to run private weights. Implementations are stateless. ``check`` looks at all files, ``parse`` at the
    small ones that say what a model is (``config.json``), where they are there; the others do no I/O."""

    name: str
    secret_params: frozenset[str]

    def parse(self, spec: DeploymentSpec) -> EngineOptions:
        """Check the parameters of ``spec``. Reads some small files at most; callers in an event loop use a thread.

        Raises:
            InvalidInput: an unknown parameter (the nearest known one is named) or a value of the wrong kind.
        """
        ...

    def check(self, options: EngineOptions) -> Memory | None:
        """Look at what can be seen without starting: is the engine installed, is the model there and whole? Returns
        what a worker needs, None where that cannot be told.

        Reads the disk and may block for some tenths of a second; callers in an event loop use a thread.

        Raises:
            EngineMissing: names the command that installs it.
            InvalidInput: the model path does not exist, or is not what the engine reads.
        """
        ...

    def command(self, options: EngineOptions, host: str, port: int, token: str) -> Launch:
        """The process of one worker that listens on ``host``:``port`` and requires ``token``."""
        ...

    def phase(self, line: str) -> str | None:
        """What a line of its log says that it is doing now (``loading weights 3/8 shards``); None for most lines."""
        ...

    def cause(self, tail: str) -> str | None:
        """Why it ended, in a sentence or two with the numbers (out of memory, unsupported architecture, missing file,
        wrong CUDA), from the last lines of its log; None where these speak for themselves."""
        ...
