"""Checks of how the host chooses tokens and reads texts; see ``torch_checks.py``, which runs them."""

from __future__ import annotations

import asyncio
from typing import Any

import torch
import transformers as hf

from byzerllm.engines.host.backend import Job, Prompt, Sampling, Token
from byzerllm.engines.host.grammar import Grammars
from byzerllm.engines.host.sampling import Sampler, choose_all
from byzerllm.engines.host.words import Words
from byzerllm.errors import InvalidInput

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
    assert choose_all([plain, other], logits) == [Token(0), Token(3)]


def check_a_token_that_breaks_the_schema_is_an_error(path: str) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    constraint = Grammars(tokenizer, len(tokenizer), frozenset((tokenizer.eos_token_id,))).constraint(
        '{"type": "object"}'
    )
    allowed = constraint.allowed(len(tokenizer))
    constraint.take(int(allowed.nonzero()[0]))
    wrong = int((~constraint.allowed(len(tokenizer))).nonzero()[0])
    try:
        constraint.take(wrong)
    except ValueError:
        return
    raise AssertionError("it was taken")


# Words


def refused(reading: Any) -> InvalidInput:
    """What is wrong with a text."""
    try:
        asyncio.run(reading)
    except InvalidInput as error:
        return error
    raise AssertionError("it was taken")


def check_a_request_sets_variables_of_the_template_only(path: str) -> None:
    own = "{% generation %}{{ messages[0].content }}{% endgeneration %}{% if thinking %}!{% endif %}{{ tokenize }}"
    words = Words(hf.AutoTokenizer.from_pretrained(path), 512, path, own)

    def chat(**options: Any) -> Any:
        host = {"add_generation_prompt": True, "continue_final_message": False}
        return words.chat([{"role": "user", "content": "a"}], None, {**host, **options})

    assert len(asyncio.run(chat(thinking=True))) == len(asyncio.run(chat())) + 1
    for name in ("tokenize", "chat_template", "truncation", "max_length", "messages", "images", "conversation"):
        assert refused(chat(**{name: "{{ 1 }}"})).param == f"chat_template_kwargs.{name}"


def check_tokens_that_the_model_does_not_know_are_refused(path: str) -> None:
    words = Words(hf.AutoTokenizer.from_pretrained(path), 20, path, "{{ messages[0].content }}")
    for reading in (words.encode("zebra", special=True), words.chat([{"content": "zebra"}], None, {})):
        assert "is no token of this model" in str(refused(reading))
