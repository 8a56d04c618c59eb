"""One call of a model for sequences at different places, and whether a model can be called in that way."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch

from byzerllm.engines.host.kv_cache import CHUNKED, FULL, SLIDING, RowCache, Step, layer_kinds

PROBE = ((3, 5, 7, 9, 11), (4, 6, 8))  # two sequences of different length
PROBE_TOLERANCE = 0.05  # of the largest logit: far above rounding, far below what a wrong mask does


class Decoder(Protocol):
    """What the batching needs of a model. Rows are sequences, each with its keys and values from the left;
    ``token_bytes`` is what those of one token take, 0 before the first ``read``."""

    @property
    def token_bytes(self) -> int: ...

    def resize(self, rows: int, capacity: int) -> None:
        """Have places for so many rows of so many tokens; what is in them stays."""
        ...

    def read(self, first: int, starts: list[int], ids: list[list[int]], taken: list[int]) -> Any:
        """Read ``ids`` into the rows from ``first`` on, each from its place in ``starts``; all lists are as long, and
        what is beyond the number ``taken`` is padding. Returns the logits ``[batch, vocabulary]`` after each row's last
        token."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row over another one."""
        ...

    def release(self) -> None:
        """No row is in use any more: there is no place for any until the next ``resize``."""
        ...


class LocalDecoder:
    """A ``Decoder`` in this process. ``context`` is its longest sequence."""

    def __init__(self, model: Any, context: int) -> None:
        self._model = model
        self._device = model.device
        self._context = context
        self._config = model.config.get_text_config(decoder=True)
        self._additive = model.dtype if self._config._attn_implementation == "eager" else None
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cache = RowCache(self._config.num_hidden_layers)
        self.token_bytes = 0

    def resize(self, rows: int, capacity: int) -> None:
        self._cache.resize(rows, capacity)

    def move(self, source: int, target: int, length: int) -> None:
        self._cache.move(source, target, length)

    def release(self) -> None:
        self._cache.release()

    def read(self, first: int, starts: list[int], ids: list[list[int]], taken: list[int]) -> Any:
        # No token looks at the padding behind a row's last one, and the row's next tokens take its place.
        width = len(ids[0])
        device = self._device
        self._cache.step = step = Step(first, starts, width, device)
        kept = sorted({n - 1 for n in taken})
        more = {"logits_to_keep": torch.tensor(kept, device=device)} if self._keeps else {}
        logits = self._model(
            input_ids=torch.tensor(ids, device=device),
            position_ids=step.places.clamp(max=self._context - 1),
            attention_mask=step.masks(self._config, self._additive),
            past_key_values=self._cache,
            use_cache=True,
            **more,
        ).logits
        self.token_bytes = self.token_bytes or self._cache.token_bytes()
        at = [kept.index(n - 1) if self._keeps else n - 1 for n in taken]
        return logits[:, at[0]] if len(set(at)) == 1 else logits[range(len(at)), at]

    def alone(self, ids: list[int]) -> Any:
        """The logits after a sequence that is read by itself, without a cache."""
        return self._model(input_ids=torch.tensor([ids], device=self._device)).logits[0, -1]

    def obstacle(self) -> str | None:
        """What about the model forbids that it is called so, or None."""
        others = layer_kinds(self._config) - {FULL, SLIDING, CHUNKED}
        if others:
            return f"its layers are of the kinds {', '.join(sorted(others))}"
        return shared_scale(self._config, self._context)


def shared_scale(config: Any, context: int) -> str | None:
    """Whether one long sequence in a batch changes how the positions of all the others are turned, as a sentence.
    Some scale them by the longest sequence of a call, once that is beyond the length they were first trained with."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for rope in [found, *(part for part in found.values() if isinstance(part, dict))]:  # all layers', or by their kinds
        kind = rope.get("rope_type") or rope.get("type") or ""
        if kind != "longrope" and "dynamic" not in kind:
            continue
        first = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        if context > first:
            return f"beyond {first} tokens its positions are scaled by the longest sequence ({kind})"
    return None


def probe(decoder: Any) -> str | None:
    """Read two sequences in one batch and compare with each read alone. Returns what is wrong, or None. It also warms
    the model up."""
    obstacle: str | None = decoder.obstacle()
    if obstacle:
        return obstacle
    with torch.inference_mode():
        longest = max(map(len, PROBE))
        padded = [[*ids, *[0] * (longest - len(ids))] for ids in PROBE]
        decoder.resize(len(PROBE), longest + 1)
        first = decoder.read(0, [0, 0], padded, [len(ids) for ids in PROBE])
        then = decoder.read(0, [len(ids) for ids in PROBE], [[2], [2]], [1, 1])
        decoder.release()
        worst = max(
            difference(logits[row], decoder.alone(ids))
            for logits, more in ((first, ()), (then, (2,)))
            for row, ids in enumerate([*sequence, *more] for sequence in PROBE)
        )
    return None if worst < PROBE_TOLERANCE else f"a batch gives other results than single sequences (by {worst:.2g})"


def difference(found: Any, right: Any) -> float:
    """The largest difference of two lists of logits, relative to the largest logit."""
    return float((found.float() - right.float()).abs().max() / right.float().abs().max().clamp(min=1e-6))
