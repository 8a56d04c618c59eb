"""Tokens into text, the model's thread, and the words of tool calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.engines.host.backend import ForcedCalls, Function, Job, Prompt, Sampling, Token
from byzerllm.engines.host.runner import Runner, Ticket
from byzerllm.engines.host.text import TextStream, overlap
from byzerllm.engines.host.tool_calls import Call, ToolReader, format_of, grammar
from byzerllm.errors import InvalidInput


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def pieces(text: bytes, stops: Sequence[str] = ()) -> list[str]:
    stream = TextStream(decode, stops)
    out = []
    for byte in text:
        out.append(stream.feed(byte))
        if stream.stopped:
            return out
    return [*out, stream.close()]


@given(st.text(max_size=40))
def test_the_pieces_are_the_text(text: str) -> None:
    assert "".join(pieces(text.encode())) == text


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    # A string counts as soon as it is whole: of two, the one that ends first.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    found = "".join(pieces(text.encode(), stops))
    if not ends:
        assert found == text
        return
    first = min(end for end, _ in ends)
    assert found == text[: min(start for end, start in ends if end == first)]


def test_a_character_in_pieces_is_shown_whole() -> None:
    assert pieces("a你".encode()) == ["a", "", "", "你", ""]


def test_bytes_that_are_no_character_are_shown_at_the_end() -> None:
    assert "".join(pieces(b"a\xe4\xbd")) == "a\ufffd"
    assert "".join(pieces(b"\xff" * 20)).count("\ufffd") == 20


def test_a_token_that_needs_the_one_before_it() -> None:
    # As with SentencePiece, where the first word of a text loses its space.
    def words(ids: Sequence[int]) -> str:
        return " ".join(f"w{i}" for i in ids)

    stream = TextStream(words)
    assert "".join(stream.feed(i) for i in (1, 2, 3)) == "w1 w2 w3"


def test_the_overlap_is_the_longest() -> None:
    assert overlap("abaab", "aaba") == 3
    assert overlap("xyz", "abc") == 0
    assert overlap("abc", "abc") == 0  # the whole of it is no beginning


# Tool calls


def read(name: str, text: str) -> tuple[str, list[Call]]:
    reader = ToolReader(name)
    said = "".join(reader.feed(char) for char in text) + reader.close()
    return said, reader.calls


def test_calls_of_hermes() -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>{"name": "g"}</tool_call>'
    assert read("hermes", text) == ("", [Call("f", '{"a": 1}'), Call("g", "{}")])


def test_text_after_a_call_of_hermes_is_not_lost() -> None:
    call = '<tool_call>{"name": "f"}</tool_call>'
    assert read("hermes", f"Wait. {call}\nThat is\nall. ") == ("Wait.\nThat is\nall.", [Call("f", "{}")])
    assert read("hermes", f"{call}\nthen\n{call}\n") == ("then", [Call("f", "{}")] * 2)


def test_calls_of_llama() -> None:
    text = '{"name": "f", "parameters": {"a": "{"}}; {"name": "g", "parameters": {}}'
    assert read("llama", text) == ("", [Call("f", '{"a": "{"}'), Call("g", "{}")])


@pytest.mark.parametrize("inside", ["; {", "</tool_call>", '"}'])
def test_arguments_that_look_like_the_end_of_their_call(inside: str) -> None:
    arguments = json.dumps({"a": inside})
    call = f'{{"name": "f", "arguments": {arguments}}}'
    assert read("hermes", f"<tool_call>{call}</tool_call>") == ("", [Call("f", arguments)])
    assert read("llama", f"{call}; {call}") == ("", [Call("f", arguments)] * 2)


@pytest.mark.parametrize("text", ['I say {"name": "f"}', "{}", '{"nam', "plain"])
def test_text_of_llama(text: str) -> None:
    assert read("llama", text) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        "a < b <tool",
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"name": 1}</tool_call>',
        '<tool_call>{"name": "f"} or not</tool_call>',
        '<tool_call>{"name": "f", "arguments": ' + "[" * 100_000,
    ],
)
def test_text_of_hermes(text: str) -> None:
    assert read("hermes", text) == (text, [])


def test_the_grammar_of_calls() -> None:
    functions = (Function("f", {"type": "object"}), Function("é", {}, strict=True))
    tokens = {"<tool_call>": 7}.get
    lines = grammar(ForcedCalls("hermes", functions, several=True), tokens).split("\n")
    assert lines[:2] == [
        'start: call ("\\n" call)*',
        'call: <[7]> "\\n" (function_0 | function_1) "\\n" "</tool_call>"',
    ]
    assert lines[2].startswith(r'function_0: "{\"name\": \"f\", \"arguments\": " %json {"type": "object", ')
    assert lines[3].startswith(r'function_1: "{\"name\": \"\u00e9\", ')
    assert ['"lenient": true' in line for line in lines[2:]] == [True, False]
    one = grammar(ForcedCalls("llama", functions[:1], several=False), tokens).split("\n")
    assert one[:2] == ["start: call", "call: (function_0)"]
    assert r"\"parameters\": " in one[2]


def test_the_format_is_seen_in_the_template() -> None:
    assert format_of("... <tool_call>\n{...") == "hermes"
    assert format_of("... <tool_call>\n<function=name>") is None
    assert format_of('<|eot_id|> {"name": function name') == "llama"
    assert format_of("{{ messages }}") is None


# The model's thread; here its work is called by the test itself


JOB = Job(Prompt([1]), 5, frozenset(), Sampling())


def idle(_runner: Runner) -> None:
    """The test is the thread."""


def test_tokens_reach_the_one_who_waits() -> None:
    async def main() -> list[int]:
        runner = Runner(idle)
        stream = runner.stream(JOB)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        (ticket,) = runner.take(4, wait=False)
        runner.publish([(ticket, Token(3)), (ticket, Token(4)), (ticket, None)])
        return [(await first).id, *[token.id async for token in stream]]

    assert asyncio.run(main()) == [3, 4]


def test_an_error_is_raised_where_it_is_waited_for() -> None:
    async def main() -> None:
        runner = Runner(idle)
        stream = runner.stream(JOB)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        runner.publish([(runner.take(1, wait=False)[0], InvalidInput("no"))])
        await first

    with pytest.raises(InvalidInput, match="no"):
        asyncio.run(main())


def test_an_unforeseen_failure_is_raised_too() -> None:
    async def main() -> None:
        runner = Runner(idle)
        first = asyncio.ensure_future(anext(runner.stream(JOB)))
        await asyncio.sleep(0)
        runner.publish([(runner.take(1, wait=False)[0], IndexError("unforeseen"))])
        await first

    with pytest.raises(IndexError, match="unforeseen"):
        asyncio.run(main())


def test_a_job_that_is_given_up_is_cancelled_and_told_nothing() -> None:
    async def main() -> Ticket:
        runner = Runner(idle)
        async with aclosing(runner.stream(JOB)) as stream:
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            (ticket,) = runner.take(1, wait=False)
            runner.publish([(ticket, Token(3))])
            await first
        runner.publish([(ticket, Token(4))])
        await asyncio.sleep(0)
        return ticket

    ticket = asyncio.run(main())
    assert ticket.cancelled
    assert ticket.outcomes.empty()


def test_a_job_that_is_given_up_while_it_waits_is_never_taken() -> None:
    async def main() -> list[Ticket]:
        runner = Runner(idle)
        waiting = [asyncio.ensure_future(anext(runner.stream(JOB))) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        taken = runner.take(4, wait=False)
        waiting[1].cancel()
        await asyncio.gather(waiting[1], return_exceptions=True)
        return taken

    assert len(asyncio.run(main())) == 1


def test_a_job_that_was_put_back_is_the_next() -> None:
    async def main() -> bool:
        runner = Runner(idle)
        waiting = [asyncio.ensure_future(anext(runner.stream(JOB))) for _ in range(2)]
        await asyncio.sleep(0)
        (first,) = runner.take(1, wait=False)
        runner.put_back(first)
        again = runner.take(1, wait=False)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return again == [first]

    assert asyncio.run(main())
