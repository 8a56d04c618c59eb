"""One call of a model for sequences at different places, and whether a model can be called in that way."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from byzerllm.engines.host.kv_cache import CHUNKED, FULL, SLIDING, RowCache, Step, layer_kinds
from byzerllm.engines.host.serial import generate

if TYPE_CHECKING:
    from byzerllm.engines.host.backend import Prompt

PROBE = ((3, 5, 7, 9, 11), (4, 6, 8))  # two sequences of different length
PROBE_TOKENS = (2, 3)  # what two prompts go on with
MASKED = ("eager", "sdpa")  # the ways to compute attention that take a mask for every token
# How far results may differ, as a part of the largest logit: far above what is rounded off in all layers together, far
# below what a wrong mask does.
PROBE_TOLERANCE, HALF_TOLERANCE = 0.05, 0.1  # and of data types of 16 bits


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

    def read_prompt(self, row: int, prompt: Prompt) -> Any:
        """Read a whole prompt, with what goes beside its tokens, into a row from its beginning. Returns the logits
        ``[vocabulary]`` after it."""
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
        self.dtype = model.dtype
        self.context = context
        self._config = model.config.get_text_config(decoder=True)
        self._additive = model.dtype if self._config._attn_implementation == "eager" else None
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._spread = len({parameter.device for parameter in model.parameters()}) > 1
        self._cache = RowCache(self._config.num_hidden_layers)
        self._shifts: dict[int, int] = {}  # by row, where it is not 0: a token's position less its place
        self.token_bytes = 0

    def resize(self, rows: int, capacity: int) -> None:
        self._cache.resize(rows, capacity)

    def move(self, source: int, target: int, length: int) -> None:
        self._cache.move(source, target, length)
        self._shift(target, self._shifts.pop(source, 0))

    def release(self) -> None:
        self._cache.release()
        self._shifts.clear()

    def read(self, first: int, starts: list[int], ids: list[list[int]], taken: list[int]) -> Any:
        # No token looks at the padding behind a row's last one, and the row's next tokens take its place.
        width = len(ids[0])
        device = self._device
        self._cache.step = step = Step(first, starts, width, device)
        kept = sorted({n - 1 for n in taken})
        if self._spread:  # a list of places would be on another GPU than the last layer
            kept = list(range(kept[0], width))
        places = len(kept) if self._spread else torch.tensor(kept, device=device)
        more = {"logits_to_keep": places} if self._keeps else {}
        logits = self._model(
            input_ids=torch.tensor(ids, device=device),
            position_ids=self._positions(first, starts).clamp(max=self.context - 1),
            attention_mask=step.masks(self._config, self._additive),
            past_key_values=self._cache,
            use_cache=True,
            **more,
        ).logits
        self.token_bytes = self.token_bytes or self._cache.token_bytes()
        at = [kept.index(n - 1) if self._keeps else n - 1 for n in taken]
        return logits[:, at[0]] if len(set(at)) == 1 else logits[range(len(at)), at]

    def _positions(self, first: int, starts: list[int]) -> Any:
        """Where the tokens of the current step are to the model, which is not always their place in the row."""
        places = self._cache.step.places
        if not self._shifts:
            return places
        for row, start in enumerate(starts, first):
            if not start:  # another sequence begins there
                self._shift(row, 0)
        shifts = [self._shifts.get(row, 0) for row in range(first, first + len(starts))]
        return places + torch.tensor(shifts, device=self._device)[:, None]

    def _shift(self, row: int, shift: int) -> None:
        if shift:
            self._shifts[row] = shift
        else:
            self._shifts.pop(row, None)

    def read_prompt(self, row: int, prompt: Prompt) -> Any:
        # The model's own generate knows what its inputs, masks and positions are. To it the row is an empty cache.
        self._cache.step = Step(row, [0], len(prompt.ids), self._device)
        calls: list[dict[str, Any]] = []
        handle = self._model.register_forward_pre_hook(lambda *call: calls.append(call[2]), with_kwargs=True)
        try:
            (logits,) = self.continued(prompt, (), past_key_values=self._cache)
        finally:
            handle.remove()
        (inputs,) = calls
        positions = inputs.get("position_ids")
        # An image of many tokens may take few positions: what comes behind goes on from the last one, as in generate.
        self._shift(row, 0 if positions is None else int(positions.flatten()[-1]) + 1 - len(prompt.ids))
        self.token_bytes = self.token_bytes or self._cache.token_bytes()
        return logits

    def continued(self, prompt: Prompt, tokens: Sequence[int], **more: Any) -> list[Any]:
        """The logits after a prompt and after each of ``tokens`` behind it, by transformers' own ``generate``."""
        found: list[Any] = []

        def choose(logits: Any) -> tuple[int, bool]:
            found.append(logits)
            return (*tokens, 0)[len(found) - 1], len(found) > len(tokens)

        generate(self._model, prompt, len(tokens) + 1, choose, **more)
        return found

    def alone(self, ids: list[int]) -> Any:
        """The logits after a sequence that is read by itself, without a cache."""
        return self._model(input_ids=torch.tensor([ids], device=self._device)).logits[0, -1]

    def obstacle(self) -> str | None:
        """What about the model forbids that it is called so, or None."""
        attention = self._config._attn_implementation
        if attention not in (None, *MASKED):  # some would read beyond their memory, and on a GPU that ends the process
            return f"the attention {attention} takes no masks of ours"
        others = layer_kinds(self._config) - {FULL, SLIDING, CHUNKED}
        if others:
            return f"its layers are of the kinds {', '.join(sorted(others))}"
        return shared_scale(self._config, self.context)


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
    return verdict(worst, tolerance(decoder.dtype))


def probe_inputs(decoder: LocalDecoder, seen: Prompt, plain: Prompt) -> str | None:
    """Let two sequences go on in one batch and compare with each alone: ``seen`` is read with what goes beside its
    tokens, ``plain`` without, although the processor gave it some. Returns what is wrong, or None."""
    prompts = (seen, plain)
    lengths = [len(prompt.ids) for prompt in prompts]
    if max(lengths) + len(PROBE_TOKENS) > decoder.context:
        return (
            f"the {max(lengths)} tokens that it was to be tried with do not fit into its context of {decoder.context}"
        )
    with torch.inference_mode():
        decoder.resize(len(prompts), max(lengths) + len(PROBE_TOKENS))
        first = decoder.read_prompt(0, seen)
        found = [torch.stack([first, decoder.read(1, [0], [plain.ids], lengths[1:])[0]])]
        for count, token in enumerate(PROBE_TOKENS):
            starts = [length + count for length in lengths]
            found.append(decoder.read(0, starts, [[token]] * len(prompts), [1] * len(prompts)))
        decoder.release()
        right = zip(*(decoder.continued(prompt, PROBE_TOKENS) for prompt in prompts), strict=True)
        worst = max(
            difference(logits[row], alone)
            for logits, both in zip(found, right, strict=True)
            for row, alone in enumerate(both)
        )
    # Positions that are a little wrong make a small difference only: it shows as far as the data type lets it.
    return verdict(worst, min(tolerance(decoder.dtype), torch.finfo(decoder.dtype).eps ** 0.5))


def tolerance(dtype: Any) -> float:
    """How far two results of a model of this data type may differ."""
    return PROBE_TOLERANCE if dtype.itemsize > 2 else HALF_TOLERANCE


def verdict(worst: float, most: float) -> str | None:
    """What is wrong with a batch whose results differ so much, or None."""
    return None if worst < most else f"a batch gives other results than single sequences (by {worst:.2g})"


def difference(found: Any, right: Any) -> float:
    """The largest difference of two lists of logits, relative to the largest logit."""
    return float((found.float() - right.float()).abs().max() / right.float().abs().max().clamp(min=1e-6))
