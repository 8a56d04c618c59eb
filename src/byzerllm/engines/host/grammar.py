"""Answers that keep to a JSON schema, by llguidance: before each token it says which ones may come."""

from __future__ import annotations

import threading
from typing import Any

from byzerllm.errors import InvalidInput


class Constraint:
    """The state of one answer."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self, size: int) -> Any:
        """A flag for each of ``size`` tokens. After the end of the JSON only the end of the answer is allowed."""
        import torch

        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        flags = (bits[:, None] >> torch.arange(8, dtype=torch.uint8)).bitwise_and(1).flatten().bool()
        return torch.nn.functional.pad(flags, (0, max(0, size - len(flags))))[:size]

    def take(self, token: int) -> None:
        """Go on behind a token.

        Raises:
            ValueError: it is not allowed here: the answer would break its schema from now on.
        """
        if not self._matcher.consume_token(token):
            raise ValueError(f"token {token} breaks the schema: {self._matcher.get_error()}")


class Grammars:
    """Makes constraints for one tokenizer; what llguidance knows of it is computed at the first use."""

    def __init__(self, tokenizer: Any, vocabulary: int, end_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_ids = end_ids
        self._words: Any = None
        self._lock = threading.Lock()

    def constraint(self, schema: str) -> Constraint:
        """A new constraint. May take some tenths of a second.

        Raises:
            InvalidInput: llguidance is not installed or cannot use this tokenizer or this schema.
        """
        try:
            import llguidance
            import llguidance.hf
        except ImportError:
            raise _bad("needs the package llguidance in the engine's environment") from None
        with self._lock:
            if self._words is None:
                try:
                    ends = sorted(self._end_ids)
                    self._words = llguidance.hf.from_tokenizer(self._tokenizer, self._vocabulary, ends)
                except ValueError as error:
                    raise _bad(f"cannot be kept with this model's tokenizer: {error}") from None
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
        problem = llguidance.LLMatcher.validate_grammar(grammar, self._words)
        if problem:
            raise _bad(f"has a schema that cannot be kept: {problem}")
        return Constraint(llguidance.LLMatcher(self._words, grammar))


def _bad(what: str) -> InvalidInput:
    return InvalidInput(f"'response_format' {what}.", param="response_format")
