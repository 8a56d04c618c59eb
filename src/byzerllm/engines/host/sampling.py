"""Choosing the next token of one sequence from the model's logits."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch

from byzerllm.engines.host.backend import Likely, Token
from byzerllm.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from byzerllm.engines.host.backend import Job

FIRST_CANDIDATES = 1024  # of a distribution that is cut by its mass: nearly always enough, and quicker than a sort
LEAST_LOGPROB = -9999.0  # JSON has no infinity
SHARED_FAILURES = (torch.OutOfMemoryError, torch.AcceleratorError)  # failures that are not of one request


def failure_of_one(error: Exception) -> Exception:
    """What a request is told whose own call of the model has failed; others had no part in it. What is wrong for them
    too (a broken device) is raised."""
    if isinstance(error, torch.OutOfMemoryError):
        return Overloaded("The engine ran out of GPU memory.", hint="Ask for fewer tokens, or send smaller images.")
    if isinstance(error, SHARED_FAILURES):
        raise error
    return error


class Sampler:
    """The choices for one job. Two with the same job choose alike if the logits are alike: the randomness is its own.

    ``constraint`` says which tokens may come next; ``plain`` means that it is always simply the likeliest one, so that
    the caller may choose for a whole batch at once.
    """

    def __init__(self, job: Job, constraint: Any = None) -> None:
        self._job = job
        self._sampling = job.sampling
        self._constraint = constraint
        self._random = random.Random(job.sampling.seed)
        self._made = 0
        self._seen: Any = None  # by token: whether the prompt or the answer has it
        self._counts: Any = None  # by token: how often the answer has it
        s = job.sampling
        self._penalties = bool(s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1)
        changed = self._penalties or s.logit_bias or job.min_tokens or constraint is not None
        self.plain = self._greedy and not changed and s.alternatives is None

    @property
    def _greedy(self) -> bool:
        return self._sampling.temperature < 1e-5 or self._sampling.top_k == 1

    def choose(self, logits: Any) -> Token:
        """The next token for ``logits``, one number for each token of the vocabulary."""
        logits = logits.float()
        scores = self._changed(logits)
        token = int(scores.argmax()) if self._greedy else self._draw(scores / self._sampling.temperature)
        self._note(token)
        if self._sampling.alternatives is None:
            return Token(token)
        return with_logprobs(token, logits, self._sampling.alternatives)

    def _changed(self, logits: Any) -> Any:
        """The logits after penalties, bias and what may not come."""
        scores = logits
        if self._penalties:
            scores = self._penalized(scores)
        if self._sampling.logit_bias or self._made < self._job.min_tokens:
            scores = scores.clone()
            for token, bias in self._sampling.logit_bias.items():
                if token < len(scores):
                    scores[token] += bias
            if self._made < self._job.min_tokens:
                scores[[token for token in self._job.end_ids if token < len(scores)]] = -torch.inf
        if self._constraint is not None:
            scores = scores.masked_fill(~self._constraint.allowed(len(scores)).to(scores.device), -torch.inf)
        return scores

    def _penalized(self, logits: Any) -> Any:
        s = self._sampling
        if self._counts is None:
            self._counts = torch.zeros_like(logits)
            self._seen = torch.zeros_like(logits, dtype=torch.bool)
            self._seen[self._job.prompt.ids] = True
        repeated = torch.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
        scores = torch.where(self._seen, repeated, logits)
        return scores - s.frequency_penalty * self._counts - s.presence_penalty * (self._counts > 0)

    def _note(self, token: int) -> None:
        self._made += 1
        if self._counts is not None:
            self._counts[token] += 1
            self._seen[token] = True
        if self._constraint is not None and token not in self._job.end_ids:
            self._constraint.take(token)

    def _draw(self, scores: Any) -> int:
        s = self._sampling
        if not s.top_k and s.top_p >= 1 and not s.min_p:
            return self._pick(torch.softmax(scores.double(), -1))
        size = len(scores)
        count = min(s.top_k, size) if s.top_k else min(FIRST_CANDIDATES, size)
        values, ids = scores.topk(count)
        whole = values if s.top_k else scores
        shares = (values.double() - whole.double().logsumexp(-1)).exp()
        shares, ids = shares.cpu(), ids.cpu()  # the rest is little, and each look at a GPU's results would wait for it
        if not s.top_k and count < size and (shares.sum() < s.top_p or s.min_p):
            values, ids = scores.sort(descending=True)
            shares = torch.softmax(values.double(), -1)
        shares = shares * (shares.cumsum(-1) - shares < max(s.top_p, 1e-9)) * (shares >= s.min_p * shares[0])
        return int(ids[self._pick(shares)])

    def _pick(self, shares: Any) -> int:
        """An index, each as likely as its share (which need not add up to 1)."""
        sums = shares.cumsum(-1)
        at = int(torch.searchsorted(sums, self._random.random() * float(sums[-1]), right=True))
        return min(at, len(sums) - 1)


def with_logprobs(token: int, logits: Any, alternatives: int) -> Token:
    """The token with its probability, and the likeliest ones."""
    logprobs = torch.log_softmax(logits, -1).clamp(min=LEAST_LOGPROB)
    values, ids = logprobs.topk(alternatives)
    top = tuple(Likely(i, value) for i, value in zip(ids.tolist(), values.tolist(), strict=True))
    return Token(token, float(logprobs[token]), top)


def choose_all(samplers: Sequence[Sampler], logits: Any) -> list[Token | Exception]:
    """The next token of each of a batch: ``logits`` is ``[batch, vocabulary]``. Of one whose choice fails it is what it
    failed with, so that the others go on."""
    likeliest = logits.argmax(-1).tolist() if any(sampler.plain for sampler in samplers) else []
    return [
        Token(likeliest[row]) if sampler.plain else _choice(sampler, logits[row])
        for row, sampler in enumerate(samplers)
    ]


def _choice(sampler: Sampler, logits: Any) -> Token | Exception:
    try:
        return sampler.choose(logits)
    except SHARED_FAILURES:
        raise
    except Exception as error:  # noqa: BLE001  # of any kind: it must not end the process, which others use too
        return error
