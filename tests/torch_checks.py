"""Checks of the host that need torch: run by the interpreter of the engine ``transformers``.

    python tests/torch_checks.py MODEL FILE ...     # with the search path of integration/test_host_batching.py

Each function here and in the files (``torch_*_checks.py``) that begins with ``check_`` is one; it gets the folder of a
model with random weights. The last line of the output is a JSON object with what went wrong in each, empty where
nothing did.
"""

from __future__ import annotations

import json
import random
import runpy
import sys
import traceback
from collections import deque
from contextlib import suppress
from typing import Any

import torch
import transformers as hf

from byzerllm.engines.host.backend import Job, Prompt, Sampling, Token
from byzerllm.engines.host.batching import PIECE, Batcher
from byzerllm.engines.host.causal_lm import worker_of
from byzerllm.engines.host.decoder import LocalDecoder, probe
from byzerllm.engines.host.serial import Serial, generate

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
            elif isinstance(outcome, Exception):
                ticket.error = outcome
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
        self.constraint: Any = None
        self.cancelled = False
        self.tokens: list[int] = []
        self.whole = False
        self.error: Exception | None = None


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


class Watched(LocalDecoder):
    """Keeps how many bytes its cache had at most."""

    most = 0

    def read(self, *args: Any) -> Any:
        found = super().read(*args)
        tensors = [tensor for layer in self._cache.layers for tensor in (layer.keys, layer.values)]
        self.most = max(self.most, sum(tensor.numel() * tensor.element_size() for tensor in tensors))
        return found


def run(
    model: Any, runner: Tickets, slots: int = 8, budget: int = 2**34, kind: type[Watched] = Watched
) -> list[list[int]]:
    decoder = kind(model, 2048)
    assert probe(decoder) is None
    with suppress(Stop):
        Batcher(decoder, slots, budget).work(runner)  # type: ignore[arg-type]  # as much of a runner as it uses
    assert decoder.most <= budget
    return [ticket.tokens for ticket in runner.tickets]


def alone(model: Any, jobs: list[Job]) -> list[list[int]]:
    """What transformers' own generate says to each."""
    return serially(model, Tickets(jobs))


def serially(model: Any, runner: Tickets) -> list[list[int]]:
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


def check_the_cache_stays_in_its_memory_when_one_of_many_is_long(path: str) -> None:
    model = load(path)
    jobs = [job(100, 40, seed=i) for i in range(7)] + [job(101, 1700)]
    runner = Tickets(jobs)
    assert run(model, runner, budget=2048 * 2 * 2 * 32 * 4) == alone(model, jobs)
    assert runner.most == 8


class Refusing:
    """A constraint that lets every token come and takes none."""

    def allowed(self, size: int) -> Any:
        return torch.ones(size, dtype=torch.bool)

    def take(self, token: int) -> None:
        raise ValueError("not allowed")


def check_one_whose_choice_fails_ends_alone(path: str) -> None:
    model = load(path)
    no_token = Job(Prompt([5, 6]), 5, frozenset((-100_000,)), GREEDY, min_tokens=1)
    jobs = [job(5, 20), no_token, job(7, 20), job(9, 9)]
    right = alone(model, [jobs[0], jobs[2]])
    for work in (run, serially):
        runner = Tickets(jobs)
        runner.tickets[3].constraint = Refusing()
        said = work(model, runner)
        assert [said[0], said[2]] == right
        assert [type(ticket.error) for ticket in runner.tickets] == [type(None), IndexError, type(None), ValueError]


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
    work, context = worker_of(model, 4, 512, {"sharers": 1})
    assert isinstance(work.__self__, Serial)
    assert context == 512
    assert isinstance(worker_of(load(path), 4, 512, {"sharers": 1})[0].__self__, Batcher)
    assert len(alone(model, MIXED[:2])[0]) == 20


def check_positions_that_one_scales_for_all_are_not_batched(path: str) -> None:
    scales: dict[str, dict[str, Any]] = {
        "longrope": {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16},
        "dynamic": {"factor": 2.0},
    }
    for kind, values in scales.items():
        rope = {"rope_type": kind, "rope_theta": 10000.0, "original_max_position_embeddings": 64, **values}
        config = hf.LlamaConfig(
            vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, rope_parameters=rope,
        )  # fmt: skip
        model = hf.AutoModelForCausalLM.from_config(config).float().eval()
        assert isinstance(worker_of(model, 4, 128, {"sharers": 1})[0].__self__, Serial), kind
        assert isinstance(worker_of(model, 4, 64, {"sharers": 1})[0].__self__, Batcher), kind


def check_inputs_come_in_the_type_of_the_model(path: str) -> None:
    model = load(path).to(torch.bfloat16)
    given: dict[str, Any] = {}
    model.generate = lambda **arguments: given.update(arguments)
    inputs = {"pixel_values": torch.zeros(1, 3), "image_grid_thw": torch.ones(1, 3, dtype=torch.int64), "spans": [1]}
    generate(model, Prompt([5, 6], inputs), 1, lambda _logits: (0, True))
    assert given["pixel_values"].dtype is torch.bfloat16
    assert given["image_grid_thw"].dtype is torch.int64
    assert given["spans"] == [1]


def check_the_probe_sees_a_wrong_mask(path: str) -> None:
    decoder = LocalDecoder(load(path), 2048)
    decoder._config = hf.AutoConfig.from_pretrained(path)
    decoder._config.sliding_window = 2
    assert "other results" in (probe(decoder) or "")


def check_the_probe_sees_a_wrong_mask_in_the_rounding_of_half_the_bits(path: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        decoder = LocalDecoder(load(path).to(dtype), 2048)
        assert probe(decoder) is None, dtype
        decoder._config = hf.AutoConfig.from_pretrained(path)
        decoder._config.sliding_window = 2
        assert "other results" in (probe(decoder) or ""), dtype


def outcome(check: Any, path: str) -> str:
    """Nothing, or what is wrong."""
    try:
        check(path)
    except Exception:  # noqa: BLE001  # of whatever kind: it is the report
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    found = {**globals()}
    for file in sys.argv[2:]:
        found |= runpy.run_path(file)
    checks = [name for name in found if name.startswith("check_")]
    print(json.dumps({name: outcome(found[name], sys.argv[1]) for name in checks}))
