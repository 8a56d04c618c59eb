"""Answers that keep to a JSON schema or are tool calls, by llguidance: before each token it says which may come."""

from __future__ import annotations

import functools
import threading
from typing import Any

from byzerllm.engines.host import tool_calls
from byzerllm.engines.host.backend import JsonSchema, Structure
from byzerllm.errors import InvalidInput

KEPT = 8  # grammars: clients send the same tools again and again
# Of text that must come llguidance would allow the usual tokens only, with a control token for the name of one.
UNFORCED = '%llguidance {"no_forcing": true}\n'


class Constraint:
    """The state of one answer, whose structure is asked for by ``field``."""

    def __init__(self, matcher: Any, field: str) -> None:
        self._matcher = matcher
        self._field = field

    def allowed(self, size: int) -> Any:
        """A flag for each of ``size`` tokens. After its end only the end of the answer is allowed.

        Raises:
            InvalidInput: here the structure is more than llguidance can follow. It would allow nothing but the end.
        """
        import torch

        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            what = self._matcher.get_error().splitlines()[0]
            raise _bad(self._field, f"has a schema that is too complex: {what}")
        bits = torch.frombuffer(bytearray(mask), dtype=torch.uint8)
        flags = (bits[:, None] >> torch.arange(8, dtype=torch.uint8)).bitwise_and(1).flatten().bool()
        return torch.nn.functional.pad(flags, (0, max(0, size - len(flags))))[:size]

    def take(self, token: int) -> None:
        """Go on behind a token.

        Raises:
            ValueError: it is not allowed here: the answer would break its structure from now on.
        """
        if not self._matcher.consume_token(token):
            # The rest of it is the whole grammar, which is the client's.
            raise ValueError(f"token {token} breaks the structure: {self._matcher.get_error().splitlines()[0]}")


class Grammars:
    """Makes constraints for one tokenizer; what llguidance knows of it is computed at the first use."""

    def __init__(self, tokenizer: Any, vocabulary: int, end_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_ids = end_ids
        self._words: Any = None
        self._lock = threading.Lock()
        self._matcher = functools.lru_cache(KEPT)(self._compiled)

    def constraint(self, structure: Structure) -> Constraint:
        """A new constraint. May take some tenths of a second.

        Raises:
            InvalidInput: llguidance is not installed or cannot use this tokenizer or this structure.
        """
        field = "response_format" if isinstance(structure, JsonSchema) else "tools"
        try:
            import llguidance
            import llguidance.hf
        except ImportError:
            raise _bad(field, "needs the package llguidance in the engine's environment") from None
        with self._lock:  # the answers to one request come together, and have one grammar
            if self._words is None:
                try:
                    ends = sorted(self._end_ids)
                    self._words = llguidance.hf.from_tokenizer(self._tokenizer, self._vocabulary, ends)
                except ValueError as error:
                    raise _bad(field, f"cannot be kept with this model's tokenizer: {error}") from None
            if isinstance(structure, JsonSchema):
                rules = f"start: %json {structure.text}"
            else:
                rules = tool_calls.grammar(structure, self._control_token)
            grammar = llguidance.LLMatcher.grammar_from_lark(UNFORCED + rules)
            return Constraint(self._matcher(grammar, field).deep_copy(), field)

    def _compiled(self, grammar: str, field: str) -> Any:
        """The state at the beginning of an answer."""
        from llguidance import LLMatcher

        problem = LLMatcher.validate_grammar(grammar, self._words)
        if problem:
            what = problem.splitlines()[0].rpartition("JSON schema: ")[2]  # the rest is about the grammar around it
            raise _bad(field, f"has a schema that cannot be kept: {what}")
        return LLMatcher(self._words, grammar)

    def _control_token(self, text: str) -> int | None:
        """The token that has no other spelling: llguidance does not take it for the characters of its name."""
        token: int | None = self._tokenizer.added_tokens_encoder.get(text)
        return token if token is not None and self._words.is_special_token(token) else None


def _bad(field: str, what: str) -> InvalidInput:
    return InvalidInput(f"'{field}' {what}.", param=field)
