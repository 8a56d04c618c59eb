"""What the actor of an instance does with calls of older clients: here it runs in the test, and the server is real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes import HANG, RESET, FakeUpstream, json_reply, sse_reply
from tests.gateway import ANSWER, delta, deploy, wait_free

from byzerllm.errors import ServerUnavailable, UpstreamError
from byzerllm.gateway.legacy.link import Link
from byzerllm.gateway.legacy.service import LegacyService
from byzerllm.wire.base import Outgoing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Byzer

Steps = Callable[[LegacyService], Coroutine[Any, Any, None]]
STREAM = {"generation.stream": True}


@pytest.fixture(scope="module")
def server(byzer: Byzer) -> Byzer:
    byzer.run("server", "start")
    return byzer


@pytest.fixture
def vendor(server: Byzer) -> Iterator[FakeUpstream]:
    """The upstream of the instance ``m``, which has one slot."""
    with FakeUpstream() as upstream:
        deploy(server, "m", upstream, max_retries=0)
        yield upstream
        server.http("DELETE", "/admin/deployments/m?force=1")


def run(byzer: Byzer, test: Steps, unread_limit: float = 60.0) -> None:
    async def main() -> None:
        with contextlib.closing(LegacyService("m", str(byzer.home), unread_limit)) as service:
            await test(service)

    asyncio.run(main())


async def ask(service: LegacyService, **item: Any) -> dict[str, Any]:
    """The result of one item."""
    answer = await service.async_apply([json.dumps({"instruction": "hello", **item})])
    (result,) = json.loads(answer["value"][0])
    found: dict[str, Any] = result
    return found


async def start(service: LegacyService) -> str:
    return str((await ask(service, **STREAM))["metadata"]["request_id"])


async def text(service: LegacyService, id: str) -> str | None:
    item = await service.get_item(id)
    return None if item is None else str(item.outputs[0].text)


async def to_the_end(service: LegacyService, id: str) -> None:
    while await text(service, id) is not None:
        pass


def test_an_abandoned_stream_is_given_up_and_its_slot_is_free(server: Byzer, vendor: FakeUpstream) -> None:
    vendor.script(sse_reply(delta("a"), done=False, then=[HANG]))

    async def test(service: LegacyService) -> None:
        id = await start(service)
        assert await text(service, id) == "a"
        await asyncio.to_thread(lambda: vendor.wait_requests(1)[0].wait_cancelled(10.0))
        await asyncio.to_thread(wait_free, server, "m")
        with pytest.raises(RuntimeError, match="404 not_found: There is no stream"):
            await service.get_item(id)

    run(server, test, unread_limit=0.3)


def test_an_aborted_stream_ends_and_its_slot_is_free(server: Byzer, vendor: FakeUpstream) -> None:
    vendor.script(sse_reply(delta("a"), done=False, then=[HANG]))

    async def test(service: LegacyService) -> None:
        id = await start(service)
        assert await text(service, id) == "a"
        reader = asyncio.ensure_future(text(service, id))
        assert (await ask(service, **{"gen.request_id": id, "gen.abort": True}))["predict"] == ""
        assert await reader is None
        await asyncio.to_thread(lambda: vendor.wait_requests(1)[0].wait_cancelled(10.0))
        await asyncio.to_thread(wait_free, server, "m")

    run(server, test)


def test_a_cancelled_call_frees_its_slot(server: Byzer, vendor: FakeUpstream) -> None:
    vendor.script(json_reply(ANSWER, 200, HANG))

    async def test(service: LegacyService) -> None:
        call = asyncio.ensure_future(ask(service))
        request = (await asyncio.to_thread(vendor.wait_requests, 1))[0]
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.to_thread(request.wait_cancelled)
        await asyncio.to_thread(wait_free, server, "m")

    run(server, test)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (json_reply({"error": {"message": "no balance", "code": "poor"}}, 402), "402 poor: no balance"),
        (sse_reply(delta("a"), {"error": {"message": "too long", "code": 400}}, done=False), "400 400: too long"),
        (sse_reply(delta("a"), done=False, then=[RESET]), "502 upstream_broken: .*"),
        (sse_reply(delta("a"), done=False), "502 upstream_broken: .*"),
    ],
)
def test_the_error_of_a_stream_reaches_its_reader(
    server: Byzer, vendor: FakeUpstream, reply: Any, message: str
) -> None:
    vendor.script(reply)

    async def test(service: LegacyService) -> None:
        id = await start(service)
        with pytest.raises(RuntimeError, match=f"^{message}") as error:
            await to_the_end(service, id)
        assert type(error.value) is RuntimeError

    run(server, test)


def test_what_the_caller_set_is_what_the_vendor_gets(server: Byzer, vendor: FakeUpstream) -> None:
    vendor.script(json_reply(ANSWER))

    async def test(service: LegacyService) -> None:
        result = await ask(service, history=[], human_as_model=True, max_length=7, **{"gen.seed": 1})
        assert (result["predict"], result["metadata"]["generated_tokens_count"]) == ("hi", 2)
        assert result["input"]["human_as_model"] is True

    run(server, test)
    sent = vendor.requests[0].json()
    messages = [{"role": "user", "content": "hello"}]
    assert sent == {"model": "vendor-model", "messages": messages, "max_tokens": 7, "seed": 1}


def test_what_the_server_has_no_service_for_is_refused_in_words(server: Byzer, vendor: FakeUpstream) -> None:
    async def test(service: LegacyService) -> None:
        for kind in ("tokenizer", "apply_chat_template"):
            with pytest.raises(RuntimeError, match=r"^400 invalid_request: m has no .* service"):
                await ask(service, **{kind: True})
        with pytest.raises(RuntimeError, match=r"^400 invalid_request: The request item is no JSON"):
            await service.async_apply(["{"])

    run(server, test)
    assert vendor.requests == []


def test_a_call_waits_for_a_server_that_restarts_or_moves(fresh_byzer: Byzer) -> None:
    byzer = fresh_byzer
    byzer.run("deploy", "--model", "m", "--pretrained_model_type", "saas/mock")

    async def test(service: LegacyService) -> None:
        assert (await ask(service))["predict"] == "You said: hello"
        os.kill(byzer.pid, signal.SIGKILL)
        assert (await ask(service))["predict"] == "You said: hello"
        await asyncio.to_thread(byzer.run, "server", "stop")
        call = asyncio.ensure_future(ask(service))
        byzer.environ["BYZERLLM_PORT"] = "0"
        await asyncio.to_thread(byzer.run, "up")
        assert (await call)["predict"] == "You said: hello"

    run(byzer, test)


def test_without_a_server_a_call_fails_after_some_patience(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(ServerUnavailable, match=r"server\.json is not there"):
            await Link(tmp_path, patience=0.1).body("GET", Outgoing("/health", b""))

    asyncio.run(test())


def test_another_servers_token_is_looked_up_again_and_a_refused_one_is_an_error(server: Byzer, tmp_path: Path) -> None:
    stale = tmp_path / "server.json"

    async def test() -> None:
        path = Outgoing("/admin/server", b"")
        stale.write_text(json.dumps({**server.server, "token": "an older one"}))
        with contextlib.closing(Link(tmp_path)) as link:
            with pytest.raises(UpstreamError) as error:
                await link.body("GET", path)
            assert error.value.status == 401
            stale.write_text(json.dumps(server.server))
            assert json.loads(await link.body("GET", path))["pid"] == server.pid

    asyncio.run(test())
