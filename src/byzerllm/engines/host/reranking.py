"""Relevance of texts for a question, by a cross encoder of sentence-transformers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from byzerllm.engines.host import loading
from byzerllm.engines.host.backend import Scores
from byzerllm.engines.host.batches import OneThread
from byzerllm.engines.host.words import Words, check_lengths


class PairScorer:
    """A ``Reranker``; ``encode``, ``decode`` and ``context`` are those of a ``TextModel``."""

    def __init__(self, model: Any, folder: str) -> None:
        # A tokenizer can be used in one thread at a time, and the model uses its own in the model's thread.
        words = Words(copy.deepcopy(model.tokenizer), len(model.tokenizer), folder, None)
        self.context: int = model.max_seq_length or model.tokenizer.model_max_length
        self.characters = self.context * words.longest
        self.encode, self.decode = words.encode, words.decode
        self._model = model
        self._thread = OneThread()

    async def score(self, pairs: list[tuple[str, str]]) -> Scores:
        tokens = check_lengths(await self._thread.run_batches(self._lengths, pairs), self.context, "documents")
        return Scores(await self._thread.run_batches(self._scores, pairs), tokens)

    def _lengths(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        read = self._model.tokenizer([one for one, _ in pairs], [other for _, other in pairs])["input_ids"]
        return [len(ids) for ids in read]

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        values: list[float] = self._model.predict(list(pairs), show_progress_bar=False).tolist()
        return values


def load(path: str, values: Mapping[str, Any], slots: int) -> PairScorer:
    """Load a classifier of pairs of texts with one label. Ends the process if it has several."""
    from sentence_transformers import CrossEncoder

    device = loading.device_of(values)
    loading.show_progress()
    loading.phase("loading weights")
    model = CrossEncoder(
        path,
        device=device,
        trust_remote_code=values.get("trust_remote_code", False),
        local_files_only=True,
        model_kwargs=loading.encoder_arguments(path, values, device),
    )
    if model.num_labels != 1:
        loading.fail(f"{path} sorts texts into {model.num_labels} classes: a reranker has one score.")
    if "max_model_len" in values:
        model.max_seq_length = values["max_model_len"]
    loading.phase("warming up")
    model.predict([("a", "b")], show_progress_bar=False)
    return PairScorer(model, path)
