"""Models for the tests: tiny, made on the spot, and of a known voice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scripts import tiny_gguf as tiny

if TYPE_CHECKING:
    from pathlib import Path

# What ``tiny_gguf`` answers to everything, as ``content`` of a chat and whatever the sampling.
SAY = "Hello! This tiny model always answers with one fixed sentence: 你好，世界。"


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 0.7 MB that says ``SAY`` and stops. Trained context: 2048 tokens."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    tiny.write(path, say=SAY)
    return path


@pytest.fixture(scope="session")
def loop_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never stops by itself, slow enough (110 MB) for a test to meet it while it speaks."""
    path = tmp_path_factory.mktemp("loop") / "loop.gguf"
    tiny.write(
        path, say=" alpha beta gamma delta", loop=True, shape=tiny.Shape(hidden=512, layers=8, heads=8, kv_heads=8)
    )
    return path
