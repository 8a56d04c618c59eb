"""Checks of the host's batching and sampling that need torch: run by the interpreter of the engine ``transformers``.

    python tests/torch_checks.py MODEL     # with src/ on the search path: see integration/test_host_batching.py

Each function here that begins with ``check_`` is one; it gets the folder of a model with random weights. The last
line of the output is a JSON object with what went wrong in each, empty where nothing did.
"""

from __future__ import annotations

import json
import random
import sys
import traceback
from collections import deque
from contextlib import suppress
from typing import Any

import torch
import transformers as hf

from byzerllm.engines.host.backend import Job, Prompt, Sampling, Token
from byzerllm.engines.host.batching import PIECE, Batcher
from byzerllm.engines.host.decoder import LocalDecoder, probe
from byzerllm.engines.host.sampling import Sampler, choose_all
from byzerllm.engines.host.serial import Serial

GREEDY = Sampling(temperature=0)


class Stop(Exception):
    """The script is through."""


class Tickets:
    """A runner whose jobs are there from the beginning, or from the step in ``later`` on; it keeps what comes."""

    def __init__(self, jobs: list[Job], later: dict[int, list[Job]] | None = None) -> None:
        self.tickets = [Ticket(job) for job in jobs]
        self._waiting = deque(self.tickets)
        self._later = dict(later or {})
        self._steps = 0
        self.most = 0  # sequences that got a token in one step
        self.cancel_at: dict[int, int] = {}  # number of the ticket -> after how many tokens

    def take(self, most: int, *, wait: bool) -> list[Ticket]:
        if not self._waiting and wait:
            if not self._later:
                raise Stop
            self._steps = min(self._later)
            self._arrive()
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def put_back(self, ticket: Ticket) -> None:
        self._waiting.appendleft(ticket)

    def publish(self, outcomes: Any) -> None:
        outcomes = list(outcomes)
        self._steps += 1
        self._arrive()
        self.most = max(self.most, len({id(ticket) for ticket, _ in outcomes}))
        for ticket, outcome in outcomes:
            if isinstance(outcome, Token):
                ticket.tokens.append(outcome.id)
            else:
                assert outcome is None, outcome
                ticket.whole = True
        for number, length in self.cancel_at.items():
            if len(self.tickets[number].tokens) >= length:
                self.tickets[number].cancelled = True

    def _arrive(self) -> None:
        for step in [step for step in self._later if step <= self._steps]:
            new = [Ticket(job) for job in self._later.pop(step)]
            self.tickets += new
            self._waiting += new


class Ticket:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.constraint = None
        self.cancelled = False
        self.tokens: list[int] = []
        self.whole = False


def load(path: str, **changes: Any) -> Any:
    config = hf.AutoConfig.from_pretrained(path)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    if changes.get("model_type"):
        return hf.AutoModelForCausalLM.from_config(config).eval()
    return hf.AutoModelForCausalLM.from_pretrained(path, config=config, dtype=torch.float32).eval()


def job(length: int, tokens: int, sampling: Sampling = GREEDY, seed: int = 0) -> Job:
    """A prompt of so many random tokens."""
    ids = random.Random(seed * 1000 + length).choices(range(3, 500), k=length)
    return Job(Prompt(ids), tokens, frozenset(), sampling)


def run(model: Any, runner: Tickets, slots: int = 8, budget: int = 2**34) -> list[list[int]]:
    decoder = LocalDecoder(model, 2048)
    assert probe(decoder) is None
    with suppress(Stop):
        Batcher(decoder, slots, budget).work(runner)  # type: ignore[arg-type]  # as much of a runner as it uses
    return [ticket.tokens for ticket in runner.tickets]


def alone(model: Any, jobs: list[Job]) -> list[list[int]]:
    """What transformers' own generate says to each."""
    runner = Tickets(jobs)
    with suppress(Stop):
        Serial(model).work(runner)  # type: ignore[arg-type]
    return [ticket.tokens for ticket in runner.tickets]


MIXED = [job(5, 20), job(1, 30), job(90, 10), job(PIECE + 100, 12), job(3, 1), job(40, 25)]


def check_a_batch_says_what_each_says_alone(path: str) -> None:
    model = load(path)
    runner = Tickets(MIXED)
    assert run(model, runner) == alone(model, MIXED)
    assert all(ticket.whole for ticket in runner.tickets)
    assert runner.most >= 4


def check_those_who_come_later_change_nothing(path: str) -> None:
    model = load(path)
    runner = Tickets(MIXED[:1], {3: MIXED[1:3], 9: MIXED[3:], 100: MIXED[:2]})
    assert run(model, runner, slots=3) == alone(model, [*MIXED, *MIXED[:2]])


def check_those_who_leave_change_nothing(path: str) -> None:
    model = load(path)
    runner = Tickets(MIXED)
    runner.cancel_at = {0: 4, 3: 1}
    said, right = run(model, runner), alone(model, MIXED)
    assert [said[i] for i in (1, 2, 4, 5)] == [right[i] for i in (1, 2, 4, 5)]
    assert len(said[0]) <= 5
    assert len(said[3]) <= 2


def check_little_memory_changes_nothing(path: str) -> None:
    model = load(path)
    jobs = [job(100, 400, seed=i) for i in range(4)]
    per_token = 2 * 2 * 32 * 4
    runner = Tickets(jobs)
    assert run(model, runner, budget=4 * 256 * per_token) == alone(model, jobs)
    assert all(ticket.whole for ticket in runner.tickets)
    assert runner.most == 4  # and yet they began together


def check_seeds_say_the_same_in_any_company(path: str) -> None:
    model = load(path)
    sampling = [Sampling(temperature=1.2, top_p=0.9, seed=i) for i in range(3)]
    sampling += [Sampling(top_k=5, seed=7), Sampling(min_p=0.1, seed=8), Sampling(seed=9, frequency_penalty=1.0)]
    jobs = [job(10 + i, 15, values) for i, values in enumerate(sampling)]
    together = run(model, Tickets(jobs))
    assert together == [run(model, Tickets([one]))[0] for one in jobs]
    assert together == alone(model, jobs)


def check_a_sliding_window(path: str) -> None:
    config = hf.MistralConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8, pad_token_id=0,
    )  # fmt: skip
    _same(config)


def check_windows_in_some_layers(path: str) -> None:
    config = hf.Gemma3TextConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, sliding_window=8, pad_token_id=0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    _same(config)


def check_learned_positions(path: str) -> None:
    _same(hf.GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=2, n_positions=2048))


def check_eager_attention(path: str) -> None:
    model = load(path, _attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert run(model, Tickets(MIXED)) == alone(model, MIXED)


def _same(config: Any) -> None:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).float().eval()
    assert run(model, Tickets(MIXED)) == alone(model, MIXED)


def check_what_has_no_keys_is_not_batched(path: str) -> None:
    config = hf.MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=2)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    assert model._is_stateful
    assert len(alone(model, MIXED[:2])[0]) == 20


def check_the_probe_sees_a_wrong_mask(path: str) -> None:
    decoder = LocalDecoder(load(path), 2048)
    decoder._config = hf.AutoConfig.from_pretrained(path)
    decoder._config.sliding_window = 2
    assert "other results" in (probe(decoder) or "")


# Sampling


def chosen(sampling: Sampling, logits: list[float], count: int = 2000, **more: Any) -> dict[int, float]:
    """How often each token is chosen."""
    sampler = Sampler(Job(Prompt([0]), count, frozenset((3,)), sampling, **more))
    found = [sampler.choose(torch.tensor(logits)).id for _ in range(count)]
    return {token: found.count(token) / count for token in set(found)}


LOGITS = [2.0, 1.0, 0.0, 1.5]  # shares 0.47 0.17 0.06 0.29


def check_shares(path: str) -> None:
    found = chosen(Sampling(seed=1), LOGITS)
    for token, share in enumerate(torch.softmax(torch.tensor(LOGITS), -1).tolist()):
        assert abs(found[token] - share) < 0.05
    assert set(chosen(Sampling(seed=1, top_k=2), LOGITS)) == {0, 3}
    assert set(chosen(Sampling(seed=1, top_p=0.5), LOGITS)) == {0, 3}
    assert set(chosen(Sampling(seed=1, top_p=0.46), LOGITS)) == {0}
    assert set(chosen(Sampling(seed=1, top_p=0.0), LOGITS)) == {0}
    assert set(chosen(Sampling(seed=1, min_p=0.5), LOGITS)) == {0, 3}
    assert set(chosen(Sampling(seed=1, temperature=0), LOGITS)) == {0}
    assert chosen(Sampling(seed=1, temperature=0.2), LOGITS)[0] > 0.9


def check_a_flat_distribution_is_not_cut(path: str) -> None:
    found = chosen(Sampling(seed=1, top_p=0.9), [0.0] * 5000, count=4000)
    assert 2200 < len(found) <= 4500


def check_what_may_not_come(path: str) -> None:
    assert set(chosen(Sampling(seed=1, logit_bias={0: -100}), LOGITS)) == {1, 2, 3}
    assert set(chosen(Sampling(temperature=0, logit_bias={2: 100}), LOGITS)) == {2}
    assert 3 not in chosen(Sampling(seed=1), LOGITS, count=50, min_tokens=50)


def check_penalties(path: str) -> None:
    def first(sampling: Sampling, count: int) -> list[int]:
        sampler = Sampler(Job(Prompt([0]), 10, frozenset(), sampling))
        return [sampler.choose(torch.tensor(LOGITS)).id for _ in range(count)]

    assert first(Sampling(temperature=0), 2) == [0, 0]
    assert first(Sampling(temperature=0, presence_penalty=0.6), 3) == [0, 3, 0]
    assert first(Sampling(temperature=0, frequency_penalty=0.6), 4) == [0, 3, 0, 1]
    assert first(Sampling(temperature=0, repetition_penalty=1.5), 2) == [3, 0]  # 0 is in the prompt


def check_probabilities(path: str) -> None:
    sampler = Sampler(Job(Prompt([0]), 10, frozenset(), Sampling(temperature=0, alternatives=2)))
    token = sampler.choose(torch.tensor(LOGITS))
    right = torch.log_softmax(torch.tensor(LOGITS), -1)
    assert abs(token.logprob - float(right[0])) < 1e-5
    assert [other.id for other in token.top] == [0, 3]


def check_a_batch_of_choices(path: str) -> None:
    plain = Sampler(Job(Prompt([0]), 10, frozenset(), Sampling(temperature=0)))
    other = Sampler(Job(Prompt([0]), 10, frozenset(), Sampling(temperature=0, logit_bias={0: -9})))
    assert (plain.plain, other.plain) == (True, False)
    logits = torch.tensor([LOGITS, LOGITS])
    assert [token.id for token in choose_all([plain, other], logits)] == [0, 3]


def outcome(check: Any, path: str) -> str:
    """Nothing, or what is wrong."""
    try:
        check(path)
    except Exception:  # noqa: BLE001  # of whatever kind: it is the report
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    checks = [name for name in globals() if name.startswith("check_")]
    print(json.dumps({name: outcome(globals()[name], sys.argv[1]) for name in checks}))
