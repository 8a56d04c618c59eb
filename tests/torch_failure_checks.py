"""Checks of what the host does when memory or a device fails; see ``torch_checks.py``, which runs them."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

import torch
from tests.torch_checks import Tickets, Watched, alone, job, load, run

from byzerllm.engines.host import ranks
from byzerllm.engines.host.causal_lm import problem_of
from byzerllm.errors import Overloaded


def check_too_little_memory_is_not_taken_for_a_model_that_cannot_be_batched(path: str) -> None:
    for error in (
        torch.OutOfMemoryError("no memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"),
    ):
        raised: list[BaseException] = []
        try:
            problem_of(Failing(error))
        except RuntimeError as found:
            raised.append(found)
        assert raised == [error], "it would be served one request at a time, for ever"
    assert problem_of(Failing(TypeError("no such mask"))) == "TypeError: no such mask"


class Failing:
    """A decoder that cannot read."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def obstacle(self) -> None:
        raise self._error

    def alone(self, ids: list[int]) -> Any:
        raise self._error


class Small(Watched):
    """Has memory for fewer tokens than it is thought to have."""

    def resize(self, rows: int, capacity: int) -> None:
        if rows * capacity > 3100:
            raise torch.OutOfMemoryError("no memory")
        super().resize(rows, capacity)


def check_a_load_that_took_too_much_memory_once_does_not_take_it_again(path: str) -> None:
    model = load(path)
    wave = [job(400, 8, seed=i) for i in range(8)]
    runner = Tickets(wave, {1: wave, 100: wave})
    run(model, runner, budget=4096 * 2 * 2 * 32 * 4, kind=Small)
    assert [type(ticket.error) for ticket in runner.tickets] == [*[Overloaded] * 8, *[type(None)] * 16]
    assert [ticket.tokens for ticket in runner.tickets[8:]] == alone(model, wave) * 2
    assert runner.most > 4


def check_a_first_rank_that_fails_ends(path: str) -> None:
    sys.stdout.flush()
    with tempfile.NamedTemporaryFile() as meeting:
        child = os.fork()
        if not child:
            try:
                ranks.join(0, 1, meeting.name, "cpu")
                ranks.Leader(Failing(torch.OutOfMemoryError("no memory"))).alone([1])
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
