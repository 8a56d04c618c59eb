"""The host's chat and completion, with a model that is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.hosted import NOW, Host, Speller

from byzerllm.engines.host.backend import JsonSchema

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {"model": "x", "messages": [{"role": "user", "content": "hi"}]}


def chat(model: Speller, **fields: Any) -> Any:
    reply = Host(model).post(CHAT, {**ASK, **fields})
    assert reply.status == 200, reply.body
    return reply.json()


def streamed(model: Speller, path: str = CHAT, **fields: Any) -> list[Any]:
    body = {**(ASK if path == CHAT else {"prompt": "hi"}), "stream": True, **fields}
    reply = Host(model).post(path, body)
    assert reply.status == 200, reply.body
    assert reply.done
    return reply.events


def refusal(model: Speller, path: str = CHAT, **fields: Any) -> dict[str, Any]:
    reply = Host(model).post(path, {**(ASK if path == CHAT else {"prompt": "hi"}), **fields})
    assert reply.status == 400
    return reply.error


def text_of(events: list[Any], number: int = 0) -> str:
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == number]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_a_chat_is_answered_in_openais_form() -> None:
    answer = chat(Speller("héllo"))
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer == {
        "object": "chat.completion",
        "created": NOW,
        "model": "the-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "héllo"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9},
    }


def test_a_stream_says_the_same_and_never_half_a_character() -> None:
    events = streamed(Speller("h你llo"), stream_options={"include_usage": True})
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(events) == "h你llo"
    assert not any("\ufffd" in json.dumps(event, ensure_ascii=False) for event in events)
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}


def test_a_stream_has_no_usage_unless_it_is_asked_for() -> None:
    assert all("usage" not in event for event in streamed(Speller()))


def test_max_tokens_ends_an_answer() -> None:
    choice = chat(Speller("hello"), max_tokens=3)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hel", "length")
    assert chat(Speller("hello"), max_completion_tokens=3)["usage"]["completion_tokens"] == 3


def test_without_max_tokens_the_context_is_filled() -> None:
    model = Speller("ab", endless=True)
    assert chat(model)["usage"] == {"prompt_tokens": 2, "completion_tokens": 98, "total_tokens": 100}


@pytest.mark.parametrize(
    ("stop", "content"), [("llo", "he"), (["x", "l"], "he"), ("hello", ""), ("o!", "hello"), (["lo", "ll"], "he")]
)
def test_a_stop_string_ends_an_answer_and_is_not_shown(stop: Any, content: str) -> None:
    assert chat(Speller("hello"), stop=stop)["choices"][0]["message"]["content"] == content
    assert text_of(streamed(Speller("hello"), stop=stop)) == content


def test_a_stop_string_ends_the_work() -> None:
    model = Speller("abc", endless=True)
    answer = chat(model, stop="ca")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 4
    assert (model.made, model.open) == (4, 0)


def test_a_stop_string_may_be_kept() -> None:
    assert chat(Speller("hello"), stop="ll", include_stop_str_in_output=True)["choices"][0]["message"]["content"] == (
        "hell"
    )


def test_several_answers_are_separate_and_differ_in_their_seed() -> None:
    model = Speller("hello")
    answer = chat(model, n=3, seed=7)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"hello"}
    assert sorted(job.sampling.seed or 0 for job in model.jobs) == [7, 8, 9]
    assert answer["usage"]["completion_tokens"] == 18
    events = streamed(Speller("hello"), n=2)
    assert [text_of(events, number) for number in (0, 1)] == ["hello", "hello"]


def test_sampling_values_are_the_requests_own_or_the_models() -> None:
    from byzerllm.engines.host.backend import Sampling

    model = Speller(defaults=Sampling(temperature=0.6, top_k=20))
    chat(model, top_p=0.5, presence_penalty=1, logit_bias={"5": -3}, top_k=-1)
    sampling = model.jobs[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.5, 0)
    assert (sampling.presence_penalty, sampling.logit_bias) == (1.0, {5: -3.0})


def test_logprobs_come_with_every_token() -> None:
    content = chat(Speller("hi"), logprobs=True, top_logprobs=1)["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["h", "i", ""]
    assert content[0] == {
        "token": "h",
        "logprob": -0.5,
        "bytes": [104],
        "top_logprobs": [{"token": "x", "logprob": -2.0, "bytes": [120]}],
    }
    events = streamed(Speller("hi"), logprobs=True)
    assert sum(len(c["logprobs"]["content"]) for e in events for c in e["choices"] if c["logprobs"]) == 3


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"stop": [1]}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages"),
        ({"temperatur": 1}, "temperatur"),
        ({"stream_options": {"include": True}}, "include"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"store": True}, "store"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"seed": 10**400}, "seed"),
        ({"temperature": 10**400}, "temperature"),
        ({"max_tokens": -(10**400)}, "max_tokens"),
        ({"logit_bias": {"\u00b2": 1}}, "logit_bias"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"256": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 10**400}}, "logit_bias"),
        ({"stop_token_ids": [256]}, "stop_token_ids"),
        ({"stop_token_ids": [-1], "min_tokens": 1}, "stop_token_ids"),
        ({"stop_token_ids": [10**400]}, "stop_token_ids"),
        ({"response_format": {"type": "json_object"}, "min_tokens": 1}, "response_format"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "response_format"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs.add_generation_prompt"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], named: str) -> None:
    error = refusal(Speller(), **fields)
    assert error["param"] == named
    assert named in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_misspelt_field_is_refused_with_the_nearest() -> None:
    assert refusal(Speller(), max_token=5)["message"].endswith("Did you mean 'max_tokens'?")


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_too_long_is_refused_with_the_numbers(path: str, stream: bool) -> None:
    long = "x" * 120
    fields = {"messages": [{"role": "user", "content": long}]} if path == CHAT else {"prompt": long}
    error = refusal(Speller(), path, **fields, stream=stream)
    assert error["code"] == "context_length_exceeded"
    assert "120" in error["message"]
    assert "100" in error["message"]
    assert "at most 98" in refusal(Speller(), path, max_tokens=99, stream=stream)["message"]


def test_the_schema_reaches_the_sampling() -> None:
    model = Speller()
    chat(model, response_format={"type": "json_object"})
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    chat(model, response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}})
    structures = [job.sampling.structure for job in model.jobs]
    assert structures == [JsonSchema(json.dumps(one)) for one in ({"type": "object"}, schema)]


def test_template_options_and_tools_reach_the_prompt() -> None:
    model = Speller()
    tools = [{"type": "function", "function": {"name": "f"}}]
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
    messages = [{"role": "assistant", "content": "ok", "tool_calls": calls}]
    chat(model, tools=tools, chat_template_kwargs={"enable_thinking": False}, messages=messages)
    (sent, given, options) = model.prompts[0]
    assert sent[0]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert given == tools
    assert options == {"enable_thinking": False, "add_generation_prompt": True, "continue_final_message": False}
    chat(model, tools=tools, tool_choice="none")
    assert model.prompts[1][1] is None


# Completions


def test_a_completion_is_answered_in_openais_form() -> None:
    reply = Host(Speller("hello")).post(COMPLETION, {"prompt": "hi", "logprobs": 1, "max_tokens": 2})
    answer = reply.json()
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "he",
            "logprobs": {
                "tokens": ["h", "e"],
                "token_logprobs": [-0.5, -0.5],
                "top_logprobs": [{"x": -2.0}, {"x": -2.0}],
                "text_offset": [0, 1],
            },
            "finish_reason": "length",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


def test_several_prompts_have_several_answers_in_their_order() -> None:
    model = Speller("hello")
    answer = Host(model).post(COMPLETION, {"prompt": ["a", [98, 99]], "n": 2, "echo": True}).json()
    assert [choice["text"] for choice in answer["choices"]] == ["ahello", "ahello", "bchello", "bchello"]
    assert answer["usage"]["prompt_tokens"] == 3


def test_a_completion_is_streamed() -> None:
    events = streamed(Speller("hello"), COMPLETION, stream_options={"include_usage": True}, echo=True)
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == "hihello"
    assert events[-1]["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize("prompt", [None, "", [], [[]], 5, ["a", 5], [300], [True, None], [True], [[1, True]], [-1]])
def test_a_prompt_of_the_wrong_kind_is_refused(prompt: Any) -> None:
    assert refusal(Speller(), COMPLETION, prompt=prompt)["param"] == "prompt"


def test_prompts_and_answers_are_limited_together() -> None:
    assert refusal(Speller(), COMPLETION, prompt=["a"] * 11, n=100)["param"] == "prompt"


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_what_cannot_fit_is_not_even_read(path: str) -> None:
    model = Speller()
    parts = [{"type": "text", "text": "x" * 600}, {"type": "text", "text": "y" * 600}]
    fields = {"messages": [{"role": "user", "content": parts}]} if path == CHAT else {"prompt": "x" * 1200}
    error = refusal(model, path, **fields)
    assert error["code"] == "context_length_exceeded"
    assert "1200 characters" in error["message"]
    assert (model.encoded, model.prompts) == (0, [])


@pytest.mark.parametrize("body", [b'{"prompt": "\\ud800"}', b'{"prompt": "\xed\xa0\x80"}', b'{"temperature": NaN}'])
def test_a_body_that_is_no_json_is_refused(body: bytes) -> None:
    reply = Host(Speller()).post(COMPLETION, body)
    assert reply.status == 400
    assert "no JSON" in reply.error["message"]


def test_an_escaped_character_is_read() -> None:
    reply = Host(Speller()).post(COMPLETION, b'{"prompt": "\\ud83d\\ude00", "echo": true, "max_tokens": 1}')
    assert reply.json()["choices"][0]["text"] == "\U0001f600h"


# The end of things


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_work(stream: bool) -> None:
    model = Speller("abc" * 30, context=10**6, endless=True)
    Host(model).post(CHAT, {**ASK, "stream": stream, "max_tokens": 10**4}, leave_after=4 if stream else 0)
    assert model.open == 0
    assert model.made < 100


def test_one_of_several_answers_that_fails_ends_the_others() -> None:
    model = Speller("abc", endless=True, fails_after=5)
    reply = Host(model).post(CHAT, {**ASK, "n": 3})
    assert reply.status == 400
    assert model.open == 0


def test_an_error_in_a_stream_is_told_in_it() -> None:
    events = streamed(Speller("abc", endless=True, fails_after=5))
    assert events[-1]["error"]["message"] == "it broke"


def test_an_error_before_the_first_token_has_a_status() -> None:
    class Broken(Speller):
        def _tokens(self, job: Any) -> Any:
            raise ValueError("unforeseen")

    reply = Host(Broken()).post(CHAT, {**ASK, "stream": True})
    assert reply.status == 500
    assert "unforeseen" not in reply.error["message"]
