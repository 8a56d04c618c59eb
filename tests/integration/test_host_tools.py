"""Tool calls that a real model has to make: one with random weights, which would never make any."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines import Running, options_of, text_of

from byzerllm.engines import engine

pytestmark = pytest.mark.timeout(600)
TEMPLATE = (
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<tool_call>\n...\n</tool_call>\n"
    "{% for m in messages %}{{ m.content }}\n{% endfor %}"
)
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "北京"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def worker(random_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    found = engine("transformers")
    options = options_of("transformers", random_hf, None, **{"backend.chat_template": TEMPLATE})
    running = Running(found, options, tmp_path_factory.mktemp("logs"))
    yield running.ready()
    running.stop(grace=0)


def check(function: dict[str, str]) -> None:
    arguments = json.loads(function["arguments"])
    if function["name"] == "now":
        assert arguments == {}
        return
    assert function["name"] == "weather"
    assert arguments.keys() == {"city", "days"}
    assert arguments["city"] in ("Oslo", "北京")
    assert 1 <= arguments["days"] <= 9


@pytest.mark.parametrize("seed", range(3))
def test_a_call_is_made(worker: Running, seed: int) -> None:
    ask = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    choice = worker.chat(**ask, seed=seed, temperature=1.0, max_tokens=300)["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    (call,) = choice["message"]["tool_calls"]
    check(call["function"])


def test_several_calls_can_be_made(worker: Running) -> None:
    # It knows nothing, so that every call is its last one or not by chance.
    ask = {"tools": TOOLS, "tool_choice": "required", "n": 8, "seed": 1, "temperature": 1.0, "max_tokens": 900}
    choices = worker.chat(**ask)["choices"]
    made = [choice["message"]["tool_calls"] for choice in choices if choice["finish_reason"] == "tool_calls"]
    assert max(map(len, made)) > 1
    for calls in made:
        assert len({call["id"] for call in calls}) == len(calls)
        for call in calls:
            check(call["function"])


def test_the_function_that_was_named_is_called(worker: Running) -> None:
    events = worker.chunks(tools=TOOLS, tool_choice=NAMED, seed=2, temperature=1.0, max_tokens=300)
    assert text_of(events) == ""
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    first, *parts = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    assert first["name"] == "weather"
    assert len(parts) > 1
    check({**first, "arguments": "".join(part["arguments"] for part in parts)})
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_arguments_that_cannot_be_kept_are_refused(worker: Running) -> None:
    own: dict[str, Any] = {"properties": {"a": {"type": "string", "format": "of-my-own"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": own, "strict": True}}]
    fields = {"messages": [{"role": "user", "content": "a"}], "tools": tools}
    status, answer = worker.ask("/v1/chat/completions", **fields, tool_choice="required")
    assert (status, answer["error"]["param"]) == (400, "tools")
    assert "of-my-own" in answer["error"]["message"]
    assert worker.ask("/v1/chat/completions", **fields, max_tokens=2)[0] == 200
