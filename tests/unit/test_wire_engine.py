"""What an engine must not be made to fetch, and the words of its errors."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from byzerllm.errors import InvalidInput, UpstreamError
from byzerllm.wire import ENGINE_WIRES
from byzerllm.wire.base import Request, Task

CLOSED = ["engine", "llama_cpp", "vllm"]
ADDRESS = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}


def request(task: Task, **fields: Any) -> Request:
    raw = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in {"model": "mine", **fields}.items()}
    return Request(task, raw, "mine", False)


def message(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": "see http://x"}, *parts]}]


def body(wire: str, asked: Request) -> Any:
    return json.loads(ENGINE_WIRES[wire].body(asked, "m", {}))


@pytest.mark.parametrize("wire", CLOSED)
@pytest.mark.parametrize(
    "part",
    [
        ADDRESS,
        {"image_url": "http://127.0.0.1/x.png", "uuid": "1"},
        {"type": "video_url", "video_url": {"url": "HTTPS://example.com/x.mp4"}},
        {"type": "audio_url", "audio_url": {"url": " FILE:///etc/passwd"}},
        {"type": "input_image", "image_url": "http:/127.0.0.1/x.png"},
        {"type": "input_audio", "input_audio": {"data": "ftp://10.0.0.1/"}},
    ],
)
def test_an_address_in_a_message_is_refused(wire: str, part: Any) -> None:
    with pytest.raises(InvalidInput, match="not fetched") as refused:
        body(wire, request(Task.CHAT, messages=message(part)))
    assert refused.value.param == "messages"


@pytest.mark.parametrize("wire", CLOSED)
@pytest.mark.parametrize(
    ("task", "fields"),
    [
        (Task.EMBEDDING, {"messages": message(ADDRESS)}),
        (Task.RESPONSES, {"input": message(ADDRESS)}),
        (Task.RESPONSES, {"input": [{"type": "function_call_output", "output": [ADDRESS]}]}),
        (Task.RERANK, {"documents": ["a", {"content": [ADDRESS]}]}),
        (Task.SCORE, {"text_1": {"content": [ADDRESS]}}),
        (Task.TOKENIZE, {"messages": message(ADDRESS)}),
    ],
)
def test_no_task_lets_one_through(wire: str, task: Task, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="not fetched") as refused:
        body(wire, request(task, **fields))
    assert [refused.value.param] == list(fields)


def test_a_chat_that_is_only_tokenised_is_looked_at_too() -> None:
    steps = ENGINE_WIRES["llama_cpp"].adapters[Task.TOKENIZE](request(Task.TOKENIZE, messages=message(ADDRESS)), "m", 9)
    assert steps is not None
    with pytest.raises(InvalidInput, match="not fetched"):
        next(steps)


def test_an_escaped_name_hides_no_address() -> None:
    hidden = b'[{"content":[{"type":"im\\u0061ge_url","image\\u005furl":{"url":"http:\\/\\/127.0.0.1"}}]}]'
    with pytest.raises(InvalidInput, match="not fetched"):
        body("engine", Request(Task.CHAT, {"messages": msgspec.Raw(hidden)}, "mine", False))


@pytest.mark.parametrize("wire", [*CLOSED, "vllm_fetching"])
@pytest.mark.parametrize(
    "fields",
    [
        {"messages": message({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}})},
        {"messages": message({"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}})},
        {"messages": [{"role": "user", "content": "image_url http://x and \\u"}]},
        {"messages": message(), "tools": [{"type": "mcp", "server_url": "https://example.com"}]},
        {"messages": [1, {"content": [1, {"type": "image_url", "image_url": 5}]}], "metadata": {"my_url": "http://x"}},
        {"messages": "image_url"},
    ],
)
def test_what_is_inside_a_request_passes_unchanged(wire: str, fields: dict[str, Any]) -> None:
    assert body(wire, request(Task.CHAT, **fields)) == {"model": "m", **fields}


def test_an_engine_that_was_told_what_to_fetch_gets_the_address() -> None:
    assert body("vllm_fetching", request(Task.CHAT, messages=message(ADDRESS)))["messages"] == message(ADDRESS)


def refusal(wire: str, message: str, status: int = 400, code: Any = 400, param: str | None = None) -> UpstreamError:
    body = {"error": {"message": message, "type": "BadRequestError", "param": param, "code": code}}
    return ENGINE_WIRES[wire].error(status, {}, json.dumps(body).encode())


@pytest.mark.parametrize("wire", [*CLOSED, "vllm_fetching"])
def test_a_code_that_repeats_the_status_becomes_that_of_our_refusals(wire: str) -> None:
    plain = refusal(wire, "no")
    assert (plain.vendor_code, plain.message) == ("invalid_request", "no")
    assert refusal(wire, "no", code="its_own").vendor_code == "its_own"
    failed = refusal(wire, "no", status=500, code=500)
    assert (failed.status, failed.vendor_code) == (500, 500)


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 8 tokens. However, your prompt contains 9 input tokens",
        "Input length (9) exceeds model's maximum context length (8).",
        "The decoder prompt (length 9) is longer than the maximum model length of 8. Make sure that",
        "max_tokens=9 cannot be greater than max_model_len=8. Please request fewer output tokens.",
    ],
)
def test_vllms_words_for_what_is_too_long_are_openais(said: str) -> None:
    found = refusal("vllm", said)
    assert (found.vendor_code, found.vendor_type) == ("context_length_exceeded", "invalid_request_error")
    assert refusal("vllm", said, status=500, code=500).vendor_code == 500


def test_vllms_param_is_a_field_of_the_request_or_none() -> None:
    assert refusal("vllm", "maximum context length is 8", param="input_tokens").param is None
    assert refusal("vllm", "maximum context length is 8", param="input_text").param is None
    assert refusal("vllm", "max_tokens=9 cannot be greater than max_model_len=8", param="max_tokens").param
    assert refusal("vllm", "no", param="input_tokens").param == "input_tokens"


def test_what_vllm_repeats_of_a_request_stays_as_it_was_sent() -> None:
    said = "1 validation error:\n  {'msg': 'Input should be a valid list', 'input': 'git commit --amend'}"
    assert refusal("vllm", said).message == said


def test_vllms_flags_are_named_as_they_are_given_here() -> None:
    auto = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    assert refusal("vllm", auto).message == (
        '"auto" tool choice requires backend.enable_auto_tool_choice and backend.tool_call_parser to be set '
        "(parameters of byzerllm deploy)."
    )
    embeds = "You must set `--enable-prompt-embeds` to input `prompt_embeds`."
    assert "set backend.enable_prompt_embeds to input `prompt_embeds` (" in refusal("vllm", embeds).message
    assert refusal("vllm", "no a--b or -- c").message == "no a--b or -- c"
