"""Tools of a chat, with a model that is none: what reaches it, and what its calls become."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.hosted import Host, Speller

from byzerllm.engines.host.backend import ForcedCalls, Function

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "x", "messages": [{"role": "user", "content": "hi"}]}
WEATHER: dict[str, Any] = {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": {"name": "now", "strict": True}}]
NOW = Function("now", {"type": "object", "properties": {}, "additionalProperties": False}, strict=True)
BOTH = (Function("weather", WEATHER["parameters"]), NOW)
NAMED = {"type": "function", "function": {"name": "now"}}
SAYS = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def chat(model: Speller, **fields: Any) -> Any:
    reply = Host(model).post(CHAT, {**ASK, **fields})
    assert reply.status == 200, reply.body
    return reply.json()


def streamed(model: Speller, **fields: Any) -> list[Any]:
    reply = Host(model).post(CHAT, {**ASK, "stream": True, **fields})
    assert reply.status == 200, reply.body
    assert reply.done
    return reply.events


def called(events: list[Any]) -> list[Any]:
    """The calls that the deltas of a stream make, as OpenAI's clients put them together."""
    calls: dict[int, Any] = {}
    for delta in (choice["delta"] for event in events for choice in event["choices"]):
        for part in delta.get("tool_calls", ()):
            if part["index"] in calls:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
            else:
                assert part["type"] == "function"
                calls[part["index"]] = {**part, "function": {**part["function"]}}
    assert list(calls) == list(range(len(calls)))
    assert len({call["id"] for call in calls.values()}) == len(calls)
    return [call["function"] for call in calls.values()]


def text_of(events: list[Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def test_tool_calls_are_taken_out_of_the_text() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    model = Speller('I look. <tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>', tool_format="hermes")
    choice = chat(model, tools=tools)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look."
    call = choice["message"]["tool_calls"][0]
    assert call["function"] == {"name": "f", "arguments": '{"a": "é"}'}
    events = streamed(model, tools=tools)
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert text_of(events) == "I look."
    assert [d["tool_calls"][0]["function"]["name"] for d in deltas if "tool_calls" in d] == ["f"]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_what_only_looks_like_a_call_stays_text() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    model = Speller("<tool_call>no json</tool_call> <tool", tool_format="hermes")
    choice = chat(model, tools=tools)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (model.says, "stop")
    assert text_of(streamed(model, tools=tools)) == model.says


def test_without_tools_in_the_request_nothing_is_taken_out() -> None:
    says = '<tool_call>{"name": "f"}</tool_call>'
    assert chat(Speller(says, tool_format="hermes"))["choices"][0]["message"]["content"] == says


# Calls that the model has to make


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, None),
        ({"tool_choice": "required"}, ForcedCalls("hermes", BOTH, several=True)),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ForcedCalls("hermes", BOTH, several=False)),
        ({"tool_choice": NAMED}, ForcedCalls("hermes", (NOW,), several=False)),
    ],
)
def test_what_the_answer_must_be_reaches_the_sampling(fields: dict[str, Any], expected: ForcedCalls | None) -> None:
    model = Speller(SAYS, tool_format="hermes")
    chat(model, tools=TOOLS, **fields)
    assert model.jobs[0].sampling.structure == expected
    assert model.prompts[0][1] == TOOLS


@pytest.mark.parametrize(("choice", "reason"), [("required", "tool_calls"), (NAMED, "stop")])
def test_a_forced_call_is_answered_in_openais_form(choice: Any, reason: str) -> None:
    model = Speller(SAYS, tool_format="hermes")
    answer = chat(model, tools=TOOLS, tool_choice=choice)["choices"][0]
    assert answer["finish_reason"] == reason
    assert answer["message"]["content"] is None
    assert [call["function"] for call in answer["message"]["tool_calls"]] == [{"name": "now", "arguments": "{}"}]
    events = streamed(model, tools=TOOLS, tool_choice=choice)
    assert text_of(events) == ""
    assert called(events) == [{"name": "now", "arguments": "{}"}]
    assert events[-1]["choices"][0]["finish_reason"] == reason


ODD: dict[str, Any] = {"a}": ['"}\\', {"b": '</tool_call>{"name": "x", "arguments": {}}'}], "é": 1e99}
SEVERAL: tuple[tuple[str, dict[str, Any]], ...] = ('we"{ä', ODD), ("now", {}), ('we"{ä', {"last": "\n"})


def written(form: str) -> str:
    key = {"hermes": "arguments", "llama": "parameters"}[form]
    calls = [json.dumps({"name": name, key: arguments}, ensure_ascii=False) for name, arguments in SEVERAL]
    return "; ".join(calls) if form == "llama" else "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in calls)


@pytest.mark.parametrize("form", ["hermes", "llama"])
def test_forced_calls_come_as_they_are_made(form: str) -> None:
    model = Speller(written(form), tool_format=form, context=1000)
    events = streamed(model, tools=TOOLS, tool_choice="required", logprobs=True)
    assert [(call["name"], json.loads(call["arguments"])) for call in called(events)] == list(SEVERAL)
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert sum("tool_calls" in delta for delta in deltas) > 50
    assert text_of(events) == ""
    message = chat(model, tools=TOOLS, tool_choice="required")["choices"][0]["message"]
    assert [call["function"] for call in message["tool_calls"]] == called(events)


@pytest.mark.parametrize(("choice", "reason"), [("required", "tool_calls"), (NAMED, "stop")])
def test_what_ends_a_text_does_not_end_a_forced_call(choice: Any, reason: str) -> None:
    model = Speller(SAYS, tool_format="hermes")
    ends = {"stop": ["\n", "now"], "stop_token_ids": [ord("{")]}
    answer = chat(model, tools=TOOLS, tool_choice=choice, **ends)["choices"][0]
    assert answer["finish_reason"] == reason
    assert answer["message"]["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_forced_call_that_was_cut_off_is_there_as_far_as_it_came(choice: Any) -> None:
    says = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    model = Speller(says, tool_format="hermes")
    cut: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "max_tokens": says.index("slo")}
    answer = chat(model, **cut)["choices"][0]
    assert (answer["finish_reason"], answer["message"]["content"]) == ("length", None)
    (call,) = answer["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "O'}
    events = streamed(model, **cut)
    assert called(events) == [call["function"]]
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    before = chat(model, **{**cut, "max_tokens": 20})["choices"][0]
    assert (before["finish_reason"], before["message"]) == ("length", {"role": "assistant", "content": ""})


def test_of_calls_of_its_own_only_the_first_is_taken_if_one_at_most_is_wanted() -> None:
    says = f"{SAYS}\n{SAYS.replace('now', 'weather')}"
    model = Speller(says, tool_format="hermes", context=1000)
    for several in (True, False):
        fields = {"tools": TOOLS, "parallel_tool_calls": several}
        names = ["now", "weather"] if several else ["now"]
        answer = chat(model, **fields)["choices"][0]
        assert [call["function"]["name"] for call in answer["message"]["tool_calls"]] == names
        assert (answer["finish_reason"], answer["message"]["content"]) == ("tool_calls", None)
        assert [call["name"] for call in called(streamed(model, **fields))] == names


def test_a_stream_never_stands_still_while_a_call_is_written() -> None:
    # Of a call that the model makes by itself nothing is shown before its end: it could turn out to be none.
    says = '<tool_call>\n{"name": "now", "arguments": {"a": "%s"}}\n</tool_call>' % ("x" * 300)
    events = streamed(Speller(says, tool_format="hermes", context=1000), tools=TOOLS)
    assert 10 <= len(events) <= 50
    assert text_of(events) == ""
    assert [call["name"] for call in called(events)] == ["now"]


def test_a_number_that_json_cannot_write_again_makes_no_call() -> None:
    says = '<tool_call>\n{"name": "f", "arguments": {"a": 1e999}}\n</tool_call>'
    choice = chat(Speller(says, tool_format="hermes"), tools=TOOLS)["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", says)


def test_tools_that_no_tokens_could_hold_are_refused() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 1000}}]
    reply = Host(Speller()).post(CHAT, {**ASK, "tools": tools})
    assert (reply.status, reply.error["param"]) == (400, "tools")


def test_a_call_is_not_forced_on_a_model_whose_form_is_unknown() -> None:
    for choice in ("required", NAMED):
        reply = Host(Speller()).post(CHAT, {**ASK, "tools": TOOLS, "tool_choice": choice})
        assert (reply.status, reply.error["param"]) == (400, "tool_choice")
        assert "can be auto or none here" in reply.error["message"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tool_choice": "required", "min_tokens": 3}, "tool_choice"),
        ({"tool_choice": NAMED, "ignore_eos": True}, "tool_choice"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tools": [{"type": "function", "function": {"description": "x"}}]}, "tools[0].function.name"),
    ],
)
def test_a_choice_that_cannot_be_kept_is_refused(fields: dict[str, Any], named: str) -> None:
    reply = Host(Speller(SAYS, tool_format="hermes")).post(CHAT, {**ASK, "tools": TOOLS, **fields})
    assert (reply.status, reply.error["param"]) == (400, named)
    assert named in reply.error["message"]


@pytest.mark.parametrize("parameters", [[], "x", {"type": "string"}, {"type": ["object", "null"]}])
def test_arguments_are_an_object(parameters: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    reply = Host(Speller(tool_format="hermes")).post(CHAT, {**ASK, "tools": tools, "tool_choice": "required"})
    assert (reply.status, reply.error["param"]) == (400, "tools")
    assert "'f'" in reply.error["message"]


def test_without_tools_it_does_not_matter_how_many_calls_are_wanted() -> None:
    assert chat(Speller("a"), parallel_tool_calls=False)["choices"][0]["message"]["content"] == "a"
