"""Requests in the formats of older APIs, and what those formats refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from byzerllm.errors import InvalidInput
from byzerllm.wire import translator
from byzerllm.wire.base import Outgoing, Task, Vendor, decode_request

USER = {"role": "user", "content": "hi"}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://h/a.png"}}]}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
STRICT = {"type": "function", "function": {"name": "add", "strict": True}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
CALLED: list[dict[str, Any]] = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
ANSWERED: list[dict[str, Any]] = [*CALLED, {"role": "tool", "tool_call_id": "c1", "content": "3"}]
SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}

# What none of these formats has, and the name under which it is refused.
NOWHERE = [
    ({"n": 2}, "n"),
    ({"seed": 0}, "seed"),
    ({"response_format": SCHEMA}, "response_format"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"logprobs": True}, "logprobs"),
    ({"tools": [STRICT]}, None),
    ({"messages": [IMAGE]}, "messages"),
]
# What asks for nothing, so that it is no reason to refuse.
HARMLESS: list[dict[str, Any]] = [
    {"n": 1},
    {"stop": []},
    {"logprobs": None},
    {"tool_choice": "auto"},
    {"tool_choice": "none"},
    {"parallel_tool_calls": True},
    {"parallel_tool_calls": False},
    {"response_format": {"type": "text"}},
    {"stream_options": {"include_usage": True}},
]


def asked(wire: str, vendor: Vendor, task: Task = Task.CHAT, **fields: Any) -> Outgoing:
    """The request in that format; one message unless ``messages`` are given."""
    body = {"model": "instance", "messages": [USER], **fields}
    return translator(wire).request(decode_request(task, json.dumps(body).encode()), vendor)


def body(wire: str, vendor: Vendor, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(asked(wire, vendor, **fields).body)
    return found


def refused(wire: str, vendor: Vendor, **fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as error:
        asked(wire, vendor, **fields)
    return error.value
