"""What the server of an engine speaks: all that clients speak, at the paths that they use."""

from __future__ import annotations

from byzerllm.wire.base import Task
from byzerllm.wire.openai import SURFACES, OpenAIWire


class EngineWire(OpenAIWire):
    """Pass-through. The base URL has no version: some paths have none."""

    name = "engine"

    def path(self, task: Task) -> str | None:
        return SURFACES[task]
