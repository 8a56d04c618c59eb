"""Checks of how the host chooses tokens and reads texts; see ``torch_checks.py``, which runs them."""

from __future__ import annotations

import asyncio
import json
import random
import re
from typing import Any

import torch
import transformers as hf

from byzerllm.engines.host.backend import ForcedCalls, Function, Job, JsonSchema, Prompt, Sampling, Token
from byzerllm.engines.host.grammar import Constraint, Grammars
from byzerllm.engines.host.sampling import Sampler, choose_all
from byzerllm.engines.host.tool_calls import MARKERS, Call, ForcedReader, ToolReader
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
        JsonSchema('{"type": "object"}')
    )
    allowed = constraint.allowed(len(tokenizer))
    constraint.take(int(allowed.nonzero()[0]))
    wrong = int((~constraint.allowed(len(tokenizer))).nonzero()[0])
    try:
        constraint.take(wrong)
    except ValueError:
        return
    raise AssertionError("it was taken")


def check_a_schema_that_turns_out_too_complex_is_an_error(path: str) -> None:
    from llguidance import LLMatcher, LLParserLimits

    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    size, end = len(tokenizer), tokenizer.eos_token_id
    grammars = Grammars(tokenizer, size, frozenset((end,)))
    grammars.constraint(JsonSchema("{}"))
    schema = '{"type": "object", "properties": {"a": {"type": "string", "pattern": "(a|b)*a(a|b){12}"}}}'
    grammar = LLMatcher.grammar_from_json_schema(schema)
    few = LLParserLimits(step_max_items=30, step_lexer_fuel=100)
    constraint = Constraint(LLMatcher(grammars._words, grammar, limits=few), "response_format")
    try:
        walk(constraint, size, end, 0)
    except InvalidInput as error:
        problem = str(error)
    else:
        problem = "it ended as if it were whole"
    assert problem.startswith("'response_format' has a schema that is too complex: "), problem


def check_the_name_of_a_control_token_is_text_in_an_answer(path: str) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    size, end = len(tokenizer), tokenizer.eos_token_id
    grammars = Grammars(tokenizer, size, frozenset((end,)))
    for name in (tokenizer.eos_token, "<|im_start|>"):
        written = {"pattern": f"^{re.escape(name)}$", "type": "string"}
        for kind, value in (({"const": name}, name), ({"enum": [f"a{name}b"]}, f"a{name}b"), (written, name)):
            schema = {"type": "object", "properties": {name: kind}, "required": [name], "additionalProperties": False}
            made = walk(grammars.constraint(JsonSchema(json.dumps(schema))), size, end, 0)
            assert json.loads(tokenizer.decode(made)) == {name: value}
            call = ForcedCalls("hermes", (Function("f", schema),), several=False)
            made = walk(grammars.constraint(call), size, end, 0)
            reader = ForcedReader("hermes")
            reader.feed(tokenizer.decode(made))
            assert [json.loads(one.arguments) for one in reader.calls] == [{name: value}]


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


# Tool calls

TOWN = {"enum": ["Rome; {", "</tool_call>"]}
PARAMETERS = {
    "type": "object",
    "properties": {"town": {"$ref": "#/$defs/town"}, "days": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["town", "days"],
    "additionalProperties": False,
    "$defs": {"town": TOWN},
}
FUNCTIONS = (Function('we"ä', PARAMETERS), Function("we", {"properties": {}, "additionalProperties": False}))


def walk(constraint: Any, size: int, end: int, seed: int) -> list[int]:
    """Tokens at random, of those that are allowed; the end as soon as it is."""
    dice = random.Random(seed)
    made: list[int] = []
    while len(made) < 500:
        allowed = constraint.allowed(size).nonzero().flatten().tolist()
        if end in allowed and (len(allowed) == 1 or dice.random() < 0.5):
            return made
        made.append(dice.choice([token for token in allowed if token != end]))
        constraint.take(made[-1])
    raise AssertionError("it has no end")


def forced(tokenizer: Any, path: str, calls: ForcedCalls, seed: int) -> tuple[str, list[Call]]:
    """What the reader finds in a forced answer."""
    words = Words(tokenizer, len(tokenizer), path, "tools: <tool_call>")
    end = tokenizer.eos_token_id
    constraint = Grammars(tokenizer, len(tokenizer), frozenset((end,))).constraint(calls)
    made = words.decode(walk(constraint, len(tokenizer), end, seed))
    reader, in_parts = ToolReader(calls.format), ForcedReader(calls.format)
    said = reader.feed(made) + reader.close()
    for part in random.Random(seed).choices(range(1, 9), k=len(made)):
        in_parts.feed(made[:part])
        made = made[part:]
    assert [(one.name, json.loads(one.arguments)) for one in in_parts.calls] == [
        (one.name, json.loads(one.arguments)) for one in reader.calls
    ]
    assert in_parts.whole
    return said, reader.calls


def keeps(call: Call) -> bool:
    """Whether the arguments are what the function's schema says."""
    arguments: dict[str, Any] = json.loads(call.arguments)
    if call.name == FUNCTIONS[1].name:
        return arguments == {}
    town, days = arguments.pop("town"), arguments.pop("days")
    return not arguments and town in TOWN["enum"] and days in range(100)


def check_forced_calls_are_whole(path: str) -> None:
    plain, known, control = (hf.AutoTokenizer.from_pretrained(path) for _ in range(3))
    known.add_tokens(list(MARKERS))
    control.add_tokens(list(MARKERS), special_tokens=True)
    counts: set[int] = set()
    names: set[str] = set()
    for tokenizer, form in ((plain, "hermes"), (known, "hermes"), (control, "hermes"), (plain, "llama")):
        for seed in range(6):
            said, found = forced(tokenizer, path, ForcedCalls(form, FUNCTIONS, several=True), seed)
            assert said == ""
            assert all(keeps(call) for call in found)
            counts.add(len(found))
            names.update(call.name for call in found)
    assert names == {'we"ä', "we"}
    assert min(counts) == 1 < max(counts)


def check_a_single_call_is_forced(path: str) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    for form in ("hermes", "llama"):
        for seed in range(4):
            said, found = forced(tokenizer, path, ForcedCalls(form, FUNCTIONS[1:], several=False), seed)
            assert (said, found) == ("", [Call("we", "{}")])


def check_answers_with_the_same_tools_go_their_own_ways(path: str) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    size, end = len(tokenizer), tokenizer.eos_token_id
    grammars = Grammars(tokenizer, size, frozenset((end,)))
    calls = ForcedCalls("hermes", FUNCTIONS, several=True)
    alone = [walk(grammars.constraint(calls), size, end, seed) for seed in range(4)]
    together = [grammars.constraint(calls) for _ in alone]
    for step in range(max(map(len, alone))):
        for constraint, tokens in zip(together, alone, strict=True):
            if step < len(tokens):
                assert constraint.allowed(size)[tokens[step]]
                constraint.take(tokens[step])
    for constraint in together:
        assert constraint.allowed(size)[end]
    assert grammars._matcher.cache_info().misses == 1


def check_what_a_schema_asks_in_vain(path: str) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    grammars = Grammars(tokenizer, len(tokenizer), frozenset((tokenizer.eos_token_id,)))

    def problem(kind: dict[str, str], *, strict: bool) -> str:
        function = Function("f", {"properties": {"a": kind}}, strict)
        try:
            grammars.constraint(ForcedCalls("hermes", (function,), several=False))
        except InvalidInput as error:
            return str(error)
        return ""

    own = {"type": "string", "format": "of-my-own"}
    assert problem(own, strict=False) == ""
    assert problem(own, strict=True) == "'tools' has a schema that cannot be kept: Unknown format: of-my-own."
    assert problem({"type": "nonsense"}, strict=False).endswith("kept: Invalid type: nonsense.")
