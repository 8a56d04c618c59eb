"""One sequence after the other by transformers' own ``generate``: for what cannot be batched as in ``batching.py``.

``generate`` knows every architecture's cache and inputs; only the choice of the tokens is ours, by a processor of the
logits that leaves one token possible.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from byzerllm.engines.host.sampling import Sampler, failure_of_one

if TYPE_CHECKING:
    from byzerllm.engines.host.backend import Prompt
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
                except Exception as error:  # noqa: BLE001  # of any kind: the next request has nothing to do with it
                    runner.publish([(ticket, failure_of_one(error))])

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

        generate(self._model, job.prompt, job.max_tokens, choose)


def generate(model: Any, prompt: Prompt, max_tokens: int, choose: Choose, **more: Any) -> None:
    """Run the model until ``choose`` says that it was the last token; ``more`` goes to the model's own ``generate``."""
    config = copy.deepcopy(model.generation_config)
    # What could change the logits before they come to us, or end the text, is ours to do; None would be the model's
    # own end. And no request is to wait for minutes while a GPU's code is compiled, as with some kinds of cache.
    config.update(
        do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, temperature=None, top_p=None,
        top_k=None, min_p=None, eos_token_id=NO_TOKEN, max_length=None, min_length=None, max_new_tokens=max_tokens,
        return_dict_in_generate=False, disable_compile=True,
    )  # fmt: skip
    ids = torch.tensor([prompt.ids], device=model.device)
    inputs = {name: _for(model, value) for name, value in prompt.inputs.items()}
    steps = _Steps(choose)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **inputs,
        **more,
        generation_config=config,
        logits_processor=[steps.force],
        stopping_criteria=[steps.is_over],
    )


def _for(model: Any, value: Any) -> Any:
    """An input where the model is. Processors give pixels and spectra in float32, and not every model takes these in
    another type than its own."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)


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
