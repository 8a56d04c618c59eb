"""Continuous batching: one call of the model makes the next token of every sequence that is under way.

A new sequence joins at the next step and a finished one leaves at once. Prompts are read in pieces between the steps,
so that a long one holds the others up only shortly; but one with images is read whole. transformers has a batching of
its own; this one is here because it is quicker on a CPU, and because in it every sequence has all of its own sampling
values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from byzerllm.engines.host import loading
from byzerllm.engines.host.block import EMPTY
from byzerllm.engines.host.sampling import Sampler, choose_all, failure_of_one
from byzerllm.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from byzerllm.engines.host.decoder import Decoder
    from byzerllm.engines.host.runner import Outcome, Runner, Ticket

PIECE = 512  # tokens of prompts that are read between two steps


@dataclass(eq=False)
class Row:
    """A sequence: its tokens so far, and how many of them are in the cache."""

    ticket: Ticket
    sampler: Sampler
    ids: list[int] = field(default_factory=list)
    filled: int = 0
    made: int = 0

    @property
    def missing(self) -> int:
        return len(self.ids) - self.filled

    @property
    def unseen(self) -> bool:
        """Whether its prompt is still to be read, with what goes beside its tokens."""
        return not self.filled and bool(self.ticket.job.prompt.inputs)


class Batcher:
    """Generates for at most ``slots`` sequences at a time with keys and values of at most ``budget`` bytes, into which
    one sequence of any length fits."""

    def __init__(self, decoder: Decoder, slots: int, budget: int) -> None:
        self._decoder = decoder
        self._slots = slots
        self._most = budget // max(decoder.token_bytes, 1)  # tokens in all rows together
        self._block = EMPTY
        self._rows: list[Row] = []
        self._put_off: list[Row] = []  # they had to make room, and go on when there is some

    def work(self, runner: Runner) -> None:
        """Serve for ever."""
        with torch.inference_mode():
            while True:
                self._admit(runner)
                self._drop_cancelled()
                try:
                    for step in (self._read_prompts, self._next_tokens):
                        self._make_room()
                        runner.publish(step())
                except torch.OutOfMemoryError:
                    runner.publish(self._give_up())

    def _give_up(self) -> list[tuple[Ticket, Outcome]]:
        error = Overloaded(
            "The engine ran out of GPU memory.", hint="Lower --worker_concurrency or backend.max_model_len."
        )
        outcomes: list[tuple[Ticket, Outcome]] = [(row.ticket, error) for row in self._rows]
        self._promise_less()
        self._rows.clear()
        self._release()
        return outcomes

    def _promise_less(self) -> None:
        """Have less in use from now on than what there was no memory for. Somebody else may have taken some for a
        moment, so it is not less than half of what was promised; and a lone sequence had no others to wait for."""
        rows, capacity = self._block
        if rows > 1:
            self._most = min(self._most, max(self._most // 2, rows * capacity * 3 // 4))
            loading.say(
                f"out of GPU memory with a place for {rows} sequences of {capacity} tokens: from now on all together "
                f"have {self._most} tokens at most"
            )

    def _release(self) -> None:
        self._block = EMPTY
        self._decoder.release()

    # Who takes part

    def _admit(self, runner: Runner) -> None:
        """Let in those who have room. Images are read before the next step, so only one with images comes before it."""
        while self._put_off and not self._unseen() and self._fits([*self._rows, self._put_off[0]]):
            self._rows.append(self._put_off.pop(0))
        while len(self._rows) < self._slots and not self._put_off and not self._unseen():
            tickets = runner.take(1, wait=not self._rows)
            if not tickets:
                return
            row = Row(tickets[0], Sampler(tickets[0].job, tickets[0].constraint), list(tickets[0].job.prompt.ids))
            if not self._fits([*self._rows, row]):
                runner.put_back(tickets[0])
                return
            self._rows.append(row)

    def _unseen(self) -> Row | None:
        return next((row for row in self._rows if row.unseen), None)

    def _fits(self, rows: Sequence[Row]) -> bool:
        return len(rows) <= 1 or len(rows) * longest(rows) <= self._most

    def _make_room(self) -> None:
        """Put the newest rows off while what is there has no room to grow, and make it for the others. The tokens of
        those that are put off are read again later."""
        while not self._fits(self._rows):
            row = self._rows.pop()
            row.filled = 0
            self._put_off.insert(0, row)
        block = self._block.grown(len(self._rows), longest(self._rows), self._most)
        if block != self._block:
            self._block = block
            self._decoder.resize(*block)

    def _drop_cancelled(self) -> None:
        self._put_off = [row for row in self._put_off if not row.ticket.cancelled]
        for index in range(len(self._rows) - 1, -1, -1):
            if self._rows[index].ticket.cancelled:
                self._remove(index)

    def _remove(self, index: int) -> None:
        """The last row takes the place of the one that leaves, so that those in use stay together."""
        last = self._rows.pop()
        if index < len(self._rows):
            self._rows[index] = last
            if last.filled:  # else it has no row in the cache yet
                self._decoder.move(len(self._rows), index, last.filled)
        if not self._rows:
            self._release()

    # The steps

    def _read_prompts(self) -> list[tuple[Ticket, Outcome]]:
        """A prompt with images, or one piece of the first that is not yet read, together with short ones beside it."""
        unseen = self._unseen()
        if unseen is not None:
            return self._read_whole(unseen)
        first = next((i for i, row in enumerate(self._rows) if row.missing > 1), None)
        if first is None:
            return []
        start = self._rows[first].filled
        group = list(takewhile(lambda row: row.missing > 1 and row.filled == start, self._rows[first:]))
        tokens = min(PIECE, group[0].missing)
        count = 1
        while count < len(group) and (count + 1) * max(tokens, group[count].missing) <= PIECE:
            tokens = max(tokens, group[count].missing)
            count += 1
        return self._step(first, group[:count], tokens)

    def _read_whole(self, row: Row) -> list[tuple[Ticket, Outcome]]:
        """Read a prompt together with what goes beside its tokens."""
        prompt = row.ticket.job.prompt
        try:
            logits = self._decoder.read_prompt(self._rows.index(row), prompt)
        except Exception as error:  # noqa: BLE001  # of any kind: the images of one are no matter of the others
            self._remove(self._rows.index(row))
            return [(row.ticket, failure_of_one(error))]
        row.filled = len(prompt.ids)
        return [] if row.missing else self._choose([row], logits[None])

    def _next_tokens(self) -> list[tuple[Ticket, Outcome]]:
        """One token of every row; of one whose prompt is not yet read it is the prompt's next."""
        if all(row.missing > 1 for row in self._rows):
            return []
        return self._step(0, list(self._rows), 1)

    def _step(self, first: int, rows: list[Row], tokens: int) -> list[tuple[Ticket, Outcome]]:
        """Read ``tokens`` more of each row, or what is left of it; choose the next token of those read to the end."""
        taken = [min(tokens, row.missing) for row in rows]
        ids = [row.ids[row.filled : row.filled + n] + [0] * (tokens - n) for row, n in zip(rows, taken, strict=True)]
        logits = self._decoder.read(first, [row.filled for row in rows], ids, taken)
        for row, n in zip(rows, taken, strict=True):
            row.filled += n
        ready = [i for i, row in enumerate(rows) if not row.missing]
        if not ready:
            return []
        whole = len(ready) == len(rows)
        return self._choose([rows[i] for i in ready], logits if whole else logits[ready])

    def _choose(self, rows: Sequence[Row], logits: Any) -> list[tuple[Ticket, Outcome]]:
        """The next token of each row from its logits."""
        outcomes: list[tuple[Ticket, Outcome]] = []
        for row, token in zip(rows, choose_all([row.sampler for row in rows], logits), strict=True):
            if isinstance(token, Exception):
                outcomes.append((row.ticket, token))
                self._remove(self._rows.index(row))
                continue
            row.ids.append(token.id)
            row.made += 1
            outcomes.append((row.ticket, token))
            if token.id in row.ticket.job.end_ids or row.made >= row.ticket.job.max_tokens:
                outcomes.append((row.ticket, None))
                self._remove(self._rows.index(row))
        return outcomes


def longest(rows: Sequence[Row]) -> int:
    """The tokens of the longest row, 0 without any."""
    return max((len(row.ids) for row in rows), default=0)
