"""The keys and values of many sequences in one block: a row for each sequence, filled from the left.

transformers' own caches keep the rows of a batch in step. Here each row has a length of its own, so that a sequence may
join or leave at any step, and one call of the model serves rows at different places. A model writes into it through
``update`` as into any cache of transformers; which places a row may look at is said by ``masks``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


class RowLayer(CacheLayerMixin):  # type: ignore[misc]  # torch's classes have no types here
    """One layer's keys and values: ``[rows, heads, capacity, head size]``, zero where nothing was written.

    Zero and not just any memory: a masked place still takes part in the product, and a NaN would spread.
    """

    def __init__(self, block: RowCache) -> None:
        super().__init__()
        self.block = block

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        self.keys = self._zeros(key_states)
        self.values = self._zeros(value_states)
        self.is_initialized = True

    def _zeros(self, like: Any) -> Any:
        return like.new_zeros((self.block.rows, like.shape[1], self.block.capacity, like.shape[3]))

    def update(self, key_states: Any, value_states: Any, *_args: Any, **_kwargs: Any) -> tuple[Any, Any]:
        """Write ``[batch, heads, tokens, size]`` at the places of the current step; returns what the step looks at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        step = self.block.step
        rows, places = step.on(key_states.device)
        self.keys[rows, :, places] = key_states.transpose(1, 2)
        self.values[rows, :, places] = value_states.transpose(1, 2)
        part = step.slice
        return self.keys[part, :, : step.width], self.values[part, :, : step.width]

    def resize(self) -> None:
        """Take the block's new size; what has a place in it is kept."""
        if self.is_initialized:
            self.keys = self._resized(self.keys)
            self.values = self._resized(self.values)

    def _resized(self, old: Any) -> Any:
        new = self._zeros(old)
        rows, capacity = min(len(old), self.block.rows), min(old.shape[2], self.block.capacity)
        new[:rows, :, :capacity] = old[:rows, :, :capacity]
        return new

    def move(self, source: int, target: int, length: int) -> None:
        if self.is_initialized:
            self.keys[target, :, :length] = self.keys[source, :, :length]
            self.values[target, :, :length] = self.values[source, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.block.step.width, 0

    def get_seq_length(self) -> int:
        length: int = self.block.step.width - self.block.step.places.shape[1]
        return length

    def get_max_length(self) -> int:
        return -1


class Step:
    """Which rows a call of the model serves and where each one's tokens go.

    ``places`` is ``[batch, tokens]``: positions in the sequence, which are also those in the cache. ``width`` is how
    far the longest row reaches after the step.
    """

    def __init__(self, first: int, starts: Sequence[int], tokens: int, device: Any) -> None:
        self.slice = slice(first, first + len(starts))
        self.places = torch.tensor(starts, device=device)[:, None] + torch.arange(tokens, device=device)
        self.width = max(starts) + tokens
        self._index: dict[Any, tuple[Any, Any]] = {}  # by device: the layers may be on several

    def on(self, device: Any) -> tuple[Any, Any]:
        """Rows and places as an index for the tensors of a device."""
        if device not in self._index:
            rows = torch.arange(self.slice.start, self.slice.stop, device=device)[:, None]
            self._index[device] = rows, self.places.to(device)
        return self._index[device]

    def masks(self, config: Any, additive: Any = None) -> Any:
        """What each token may look at: ``[batch, 1, tokens, width]``, or one such for each kind of layer. With a data
        type as ``additive`` it is zero where it may look and the lowest number elsewhere, otherwise true or false."""
        masks = {kind: self._mask(kind, config, additive) for kind in layer_kinds(config)}
        return masks if hasattr(config, "layer_types") else next(iter(masks.values()))

    def _mask(self, kind: str, config: Any, additive: Any) -> Any:
        seen = torch.arange(self.width, device=self.places.device)
        places = self.places[:, None, :, None]
        mask = seen <= places
        if kind == SLIDING:
            mask &= seen > places - config.sliding_window
        elif kind == CHUNKED:
            mask &= seen >= places - places % config.attention_chunk_size
        return mask if additive is None else torch.where(mask, 0.0, torch.finfo(additive).min).to(additive)


class RowCache(Cache):  # type: ignore[misc]
    """Rows of keys and values for every layer. ``resize`` gives it its size, before its first use and after."""

    step: Step

    def __init__(self, layers: int) -> None:
        self.rows = self.capacity = 0
        super().__init__(layers=[RowLayer(self) for _ in range(layers)])

    def resize(self, rows: int, capacity: int) -> None:
        """Have so many rows of so many tokens from now on; what is beyond them is lost."""
        self.rows, self.capacity = rows, capacity
        for layer in self.layers:
            layer.resize()

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row over another one."""
        for layer in self.layers:
            layer.move(source, target, length)

    def token_bytes(self) -> int:
        """What one token of one sequence takes, over all layers."""
        tensors = [t for layer in self.layers if layer.is_initialized for t in (layer.keys, layer.values)]
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in tensors)

    def release(self) -> None:
        """Give the memory back when no row is in use."""
        self.rows = self.capacity = 0
        for layer in self.layers:
            layer.keys = layer.values = None
            layer.is_initialized = False


def layer_kinds(config: Any) -> frozenset[str]:
    """The kinds of attention that a decoder's layers have."""
    if hasattr(config, "layer_types"):
        return frozenset(config.layer_types)
    if getattr(config, "sliding_window", None) is not None:
        return frozenset((SLIDING,))
    return frozenset((CHUNKED if getattr(config, "attention_chunk_size", None) else FULL,))
