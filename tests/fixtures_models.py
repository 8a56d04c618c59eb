"""Models for the tests: tiny, made on the spot, and of a known voice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scripts import tiny_gguf as tiny
from scripts import tiny_hf

if TYPE_CHECKING:
    from pathlib import Path

# What ``tiny_gguf`` and ``tiny_hf`` answer to everything, as ``content`` of a chat and whatever the sampling.
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


# What the random models say after a prompt, greedily: the same in every engine, since they have the same weights.
RANDOM_SEED, RANDOM_PROMPT = 4, "answer"
RANDOM_SAYS = " wi3333 but bome bome bome bome bome"
RANDOM_TOKENS = 16
HF_CONTEXT = 32768  # tokens: without an end it speaks longer than any test waits


@pytest.fixture(scope="session")
def random_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights."""
    path = tmp_path_factory.mktemp("random") / "random.gguf"
    tiny.write(path, seed=RANDOM_SEED)
    return path


@pytest.fixture(scope="session")
def hf_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Hugging Face's form whose model says ``SAY``."""
    path = tmp_path_factory.mktemp("hf") / "model"
    tiny_hf.write(path, say=SAY, shape=tiny.Shape(ctx=HF_CONTEXT))
    return path


@pytest.fixture(scope="session")
def random_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of ``random_gguf`` in Hugging Face's form."""
    path = tmp_path_factory.mktemp("hf") / "random"
    tiny_hf.write(path, seed=RANDOM_SEED)
    return path


@pytest.fixture(scope="session")
def hf_without_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose tokenizer has no chat template."""
    path = tmp_path_factory.mktemp("hf") / "plain"
    tiny_hf.write(path, say=SAY, template=None)
    return path


@pytest.fixture(scope="session")
def hf_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: vectors of 64 numbers, texts of at most 128 tokens."""
    path = tmp_path_factory.mktemp("hf") / "embedder"
    tiny_hf.write_bert(path, "embedding")
    return path


@pytest.fixture(scope="session")
def hf_reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross encoder."""
    path = tmp_path_factory.mktemp("hf") / "reranker"
    tiny_hf.write_bert(path, "reranker")
    return path
