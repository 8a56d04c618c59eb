"""One sequence after the other by transformers' own ``generate``: for what cannot be batched as in ``batching.py``.

``generate`` knows every architecture's cache and inputs; only the choice of the tokens is ours, by a processor of the
logits that leaves one token possible.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from byzerllm.engines.host.sampling import SHARED_FAILURES, Sampler
from byzerllm.errors import Overloaded

if TYPE_CHECKING:
    from byzerllm.engines.host.backend import Job
    from byzerllm.engines.host.runner import Runner, Ticket

NO_TOKEN = 2**31 - 1

Choose = Callable[[Any], tuple[int, bool]]
"""From the logits of a step to its token and whether it is the last one."""


class Serial:
    """Generates for one sequence at a time."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def work(self, runner: Runner) -> None:
        """Serve for ever."""
        while True:
            for ticket in runner.take(1, wait=True):
                try:
                    self._serve(runner, ticket)
                except torch.OutOfMemoryError:
                    error = Overloaded("The engine ran out of GPU memory.", hint="Ask for fewer tokens.")
                    runner.publish([(ticket, error)])
                except SHARED_FAILURES:
                    raise
                except Exception as error:  # noqa: BLE001  # of any kind: the next request has nothing to do with it
                    runner.publish([(ticket, error)])

    def _serve(self, runner: Runner, ticket: Ticket) -> None:
        job = ticket.job
        sampler = Sampler(job, ticket.constraint)
        made = 0

        def choose(logits: Any) -> tuple[int, bool]:
            nonlocal made
            token = sampler.choose(logits)
            made += 1
            last = token.id in job.end_ids or made >= job.max_tokens or ticket.cancelled
            runner.publish([(ticket, token), (ticket, None)] if last else [(ticket, token)])
            return token.id, last

        generate(self._model, job, choose)


def generate(model: Any, job: Job, choose: Choose) -> None:
    """Run the model until ``choose`` says that it was the last token."""
    config = copy.deepcopy(model.generation_config)
    # What could change the logits before they come to us, or end the text, is ours to do; None would be the model's
    # own end.
    config.update(
        do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, temperature=None, top_p=None,
        top_k=None, min_p=None, eos_token_id=NO_TOKEN, max_length=None, min_length=None, max_new_tokens=job.max_tokens,
        return_dict_in_generate=False,
    )  # fmt: skip
    ids = torch.tensor([job.prompt.ids], device=model.device)
    inputs = {name: _on(value, model.device) for name, value in job.prompt.inputs.items()}
    steps = _Steps(choose)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **inputs,
        generation_config=config,
        logits_processor=[steps.force],
        stopping_criteria=[steps.is_over],
    )


def _on(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


class _Steps:
    """The two places at which ``generate`` asks: what comes next, and whether that was all."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._over = False

    def force(self, _ids: Any, scores: Any) -> Any:
        token, self._over = self._choose(scores[0])
        only = torch.full_like(scores, -torch.inf)
        only[:, token] = 0
        return only

    def is_over(self, ids: Any, _scores: Any, **_more: Any) -> Any:
        return torch.full((len(ids),), self._over, device=ids.device, dtype=torch.bool)
