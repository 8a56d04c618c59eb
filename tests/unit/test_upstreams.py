"""From checked parameters to the bytes that go to a vendor or an engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from byzerllm import __version__
from byzerllm.control.upstreams import engine_upstream, models_requests, saas_upstreams
from byzerllm.engines.base import EngineOptions
from byzerllm.errors import InvalidInput
from byzerllm.providers.parse import SaasOptions, parse
from byzerllm.relay.target import Target, request_head
from byzerllm.routing.worker import PassThrough
from byzerllm.runtime.base import EngineProcess
from byzerllm.spec import DeploymentSpec, Timeouts
from byzerllm.wire import WIRES
from byzerllm.wire.base import Task
from byzerllm.wire.openai import PATHS, OpenAIWire

URL = "https://api.example/v1"


def options(**params: str) -> SaasOptions:
    named = {"saas.api_key": "sk-1", "saas.base_url": URL, "saas.model": "x"}
    named |= {f"saas.{name}": value for name, value in params.items()}
    return parse(DeploymentSpec(name="m", pretrained_model_type="saas/openai", infer_params=named), {})


def endpoint(given: SaasOptions, base_url: str) -> PassThrough:
    (found,) = saas_upstreams(given, base_url)
    assert isinstance(found, PassThrough)
    return found


def head(found: Any, task: Task = Task.CHAT) -> list[str]:
    lines: list[str] = found.heads[task].decode("ascii").split("\r\n")
    return lines


def test_a_vendors_request() -> None:
    found = endpoint(options(max_retries="5", timeout="7"), URL)
    assert found.request(Task.CHAT, b"{}").decode() == (
        "POST /v1/chat/completions HTTP/1.1\r\n"
        "Host: api.example\r\n"
        f"User-Agent: byzerllm/{__version__}\r\n"
        "Accept: */*\r\n"
        "Authorization: Bearer sk-1\r\n"
        "Content-Type: application/json\r\n"
        "Content-Length: 2\r\n\r\n{}"
    )
    assert set(found.heads) == set(PATHS)
    assert head(found, Task.EMBEDDING)[0] == "POST /v1/embeddings HTTP/1.1"
    assert (found.model, found.max_retries, found.timeouts) == ("x", 5, Timeouts(7, 7, 7, 3600))
    assert (found.target, found.defaults) == (Target(True, "api.example", 443), {})


def test_headers_query_and_body_fields_of_the_owner() -> None:
    found = endpoint(options(organization="o", api_version="2024 x&y", reasoning_effort="low"), URL)
    assert head(found)[0] == "POST /v1/chat/completions?api-version=2024+x%26y HTTP/1.1"
    assert "OpenAI-Organization: o" in head(found)
    assert {name: bytes(raw) for name, raw in found.defaults.items()} == {"reasoning_effort": b'"low"'}


@pytest.mark.parametrize("value", ["sk-1\r\nX-Evil: 1", "sk-\n", "sk-é", "a\tb", "sk-\x7f"])
def test_a_value_that_no_header_can_carry_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(InvalidInput, match="header Authorization has characters that no header can carry") as refused:
        endpoint(options(api_key=value), URL)
    assert "sk" not in refused.value.message


def test_the_vendors_list_of_models() -> None:
    target, [(path, request)] = models_requests(options(api_version="1"), URL)
    assert (target.host, path) == ("api.example", "/v1/models")
    assert request == (
        b"GET /v1/models?api-version=1 HTTP/1.1\r\nHost: api.example\r\n"
        + f"User-Agent: byzerllm/{__version__}\r\n".encode()
        + b"Accept: */*\r\nAuthorization: Bearer sk-1\r\n\r\n"
    )


def test_an_address_without_v1_is_also_tried_with_it() -> None:
    _, requests = models_requests(options(), "https://api.example/base")
    assert [path for path, _ in requests] == ["/base/models", "/base/v1/models"]


def test_through_a_plain_proxy_the_line_has_the_address_and_the_proxys_password() -> None:
    target = Target(False, "h", 8000, proxy="http://u:p@proxy:3128")
    assert request_head("GET", target, "/v1/models", b"Host: h:8000\r\n") == (
        b"GET http://h:8000/v1/models HTTP/1.1\r\nHost: h:8000\r\nProxy-Authorization: Basic dTpw\r\n"
    )
    tunnelled = Target(True, "h", 443, proxy="http://u:p@proxy:3128")
    assert request_head("GET", tunnelled, "/x", b"") == b"GET /x HTTP/1.1\r\n", "the vendor never sees the password"


def test_a_vendor_without_a_key_gets_none() -> None:
    keyless = parse(DeploymentSpec(name="m", pretrained_model_type="saas/mock", infer_params={"saas.api_key": ""}), {})
    assert not any(line.startswith("Authorization") for line in head(endpoint(keyless, "http://127.0.0.1:1")))


def test_a_format_without_a_task_has_no_head_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class ChatOnly(OpenAIWire):
        def path(self, task: Task) -> str | None:
            return super().path(task) if task is Task.CHAT else None

    monkeypatch.setitem(WIRES, "chat_only", ChatOnly())
    given = options()
    vendor = msgspec.structs.replace(given.provider, wire="chat_only")
    assert set(endpoint(replace(given, provider=vendor), URL).heads) == {Task.CHAT}


def test_an_engines_request() -> None:
    process = EngineProcess(worker_id="m.1.0", pid=1, started=0, host="127.0.0.1", port=4000, token="t0", log="")
    chat = EngineOptions("/m", 1, (Task.CHAT, Task.COMPLETION, Task.RESPONSES, Task.TOKENIZE))
    found = engine_upstream(process, "m", Timeouts(first_byte=1), chat)
    assert head(found)[:2] == ["POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1:4000"]
    assert "Authorization: Bearer t0" in head(found)
    assert found.heads[Task.TOKENIZE].startswith(b"POST /tokenize HTTP/1.1")
    assert set(found.tasks) == set(chat.tasks)
    ranks = EngineOptions("/m", 1, (Task.RERANK,), wire="llama_cpp")
    ranker = engine_upstream(process, "m", Timeouts(), ranks)
    assert set(ranker.tasks) == {Task.RERANK}
    assert (found.asks_usage, ranker.asks_usage) == (True, False)  # llama.cpp tells them in any case
    assert found.watched
    assert not endpoint(options(), URL).watched
    assert (found.model, found.max_retries, found.timeouts) == ("m", 3, Timeouts(first_byte=1))
