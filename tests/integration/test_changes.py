"""What becomes of a running instance when its owner changes it: keys that rotate, removal by force."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from tests.fakes import HANG, FakeUpstream, Reply, json_reply
from tests.harness import Byzer, eventually

ANSWER = {
    "id": "1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
}


def ask(byzer: Byzer, name: str) -> Any:
    return byzer.http("POST", "/v1/chat/completions", {"model": name, "messages": []})


def flags(upstream: FakeUpstream, key: str) -> tuple[str, ...]:
    return (
        *("--pretrained_model_type", "saas/openai", "--no_verify", "--infer_params"),
        *(f"saas.base_url={upstream.url}", "saas.model=m", f"saas.api_key={key}"),
    )


def test_a_key_that_was_rotated_is_read_again_on_replace(byzer: Byzer, upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.default = json_reply(ANSWER)
    file = tmp_path / "key"
    file.write_text("sk-old-key")
    deploy = ("deploy", "--model", "rotated", *flags(upstream, f"file:{file}"))
    byzer.run(*deploy)
    ask(byzer, "rotated")
    file.write_text("sk-new-key")
    assert "already deployed" in byzer.run(*deploy).stdout
    ask(byzer, "rotated")
    assert byzer.run(*deploy, "--replace").stdout == "Model rotated deployed successfully\n"
    ask(byzer, "rotated")
    keys = [r.headers["authorization"].removeprefix("Bearer ") for r in upstream.requests]
    assert keys == ["sk-old-key", "sk-old-key", "sk-new-key"]


def test_a_replacement_that_fails_keeps_the_old_key(byzer: Byzer, upstream: FakeUpstream) -> None:
    upstream.default = json_reply(ANSWER)
    deploy = ("deploy", "--model", "kept", *flags(upstream, "env:ROTATED"))
    byzer.run(*deploy, env={"ROTATED": "sk-first-key"})
    broken = (*deploy, "saas.ca_file=/nowhere/ca.pem", "saas.timeout=0", "--replace")
    byzer.run(*broken, env={"ROTATED": "sk-second-key"}, code=2)
    byzer.run("scale", "--model", "kept", "--num_workers", "2")
    ask(byzer, "kept")
    assert upstream.requests[-1].headers["authorization"] == "Bearer sk-first-key"


def test_force_cuts_a_vendors_running_requests(byzer: Byzer, upstream: FakeUpstream) -> None:
    upstream.default = Reply([HANG])
    byzer.run("deploy", "--model", "cut", *flags(upstream, "k"))
    answers: list[Any] = []
    asker = threading.Thread(target=lambda: answers.append(ask(byzer, "cut")))
    asker.start()
    eventually(lambda: upstream.requests)
    byzer.run("undeploy", "--model", "cut", "--force")
    asker.join(timeout=10)
    assert answers[0].status == 503
    assert "it was removed" in answers[0].json()["error"]["message"]
    upstream.requests[0].wait_cancelled()


def test_a_models_card_says_when_it_was_deployed(byzer: Byzer, upstream: FakeUpstream) -> None:
    byzer.run("deploy", "--model", "carded", *flags(upstream, "k"))
    assert abs(byzer.http("GET", "/v1/models/carded").json()["created"] - time.time()) < 60
    assert {"id", "object", "created", "owned_by"} <= set(byzer.http("GET", "/v1/models/carded").json())
