"""Embeddings by sentence-transformers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from byzerllm.engines.host import loading
from byzerllm.engines.host.backend import Vectors
from byzerllm.engines.host.batches import OneThread
from byzerllm.engines.host.words import Words, check_lengths
from byzerllm.errors import InvalidInput


class SentenceEmbedder:
    """An ``Embedder``; ``encode``, ``decode`` and ``context`` are those of a ``TextModel``."""

    def __init__(self, model: Any, folder: str) -> None:
        # A tokenizer can be used in one thread at a time, and the model uses its own in the model's thread.
        words = Words(copy.deepcopy(model.tokenizer), len(model.tokenizer), folder, None)
        self.encode, self.decode = words.encode, words.decode
        self._words = Words(model.tokenizer, len(model.tokenizer), folder, None)
        self.context: int = model.max_seq_length or model.tokenizer.model_max_length
        self.characters = self.context * words.longest
        self._model = model
        self._size: int = model.get_embedding_dimension()
        self._thread = OneThread()

    async def embed(self, texts: list[str] | list[list[int]], dimensions: int | None) -> Vectors:
        if dimensions is not None and dimensions > self._size:
            raise InvalidInput(
                f"'dimensions' is {dimensions}; the model's vectors have {self._size}.", param="dimensions"
            )
        read = await self._thread.run_batches(self._read, texts)
        tokens = check_lengths([length for _, length in read], self.context, "input")
        plain = [text for text, _ in read]
        rows = await self._thread.run_batches(self._vectors, plain)
        return Vectors(rows if dimensions is None else [_shortened(row, dimensions) for row in rows], tokens)

    def _read(self, texts: Sequence[str | list[int]]) -> list[tuple[str, int]]:
        """Each as text, and its tokens' number."""
        plain = [text if isinstance(text, str) else self._words.decode(text) for text in texts]
        return [(text, len(self._words.ids(text, True))) for text in plain]

    def _vectors(self, texts: Sequence[str]) -> list[list[float]]:
        rows: list[list[float]] = self._model.encode(list(texts), show_progress_bar=False).tolist()
        return rows


def _shortened(row: list[float], size: int) -> list[float]:
    """The first numbers, as long as a whole vector was (models that can be shortened are trained for that)."""
    before, after = (sum(value * value for value in part) ** 0.5 for part in (row, row[:size]))
    return [value * before / after for value in row[:size]] if after else row[:size]


def load(path: str, values: Mapping[str, Any], slots: int) -> SentenceEmbedder:
    """Load a sentence-transformers folder, or an encoder, whose tokens' mean is then taken."""
    from sentence_transformers import SentenceTransformer

    device = loading.device_of(values)
    loading.show_progress()
    loading.phase("loading weights")
    model = SentenceTransformer(
        path,
        device=device,
        trust_remote_code=values.get("trust_remote_code", False),
        local_files_only=True,
        model_kwargs=loading.encoder_arguments(path, values, device),
    )
    if "max_model_len" in values:
        model.max_seq_length = values["max_model_len"]
    loading.phase("warming up")
    model.encode(["a"], show_progress_bar=False)
    return SentenceEmbedder(model, path)
