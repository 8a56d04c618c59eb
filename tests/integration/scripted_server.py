"""A scripted HTTP server in the place of byzerllm's own, and what a command shows on a terminal.

with ScriptedServer() as server:
    server.announce(byzer.home)
    server.answers["GET /admin/deployments"] = json_reply({"deployments": []})
    byzer.run("list")
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
from typing import TYPE_CHECKING, Any

from tests.fakes import FakeUpstream, Received, Reply, Step, json_reply

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Byzer

UNKNOWN = {
    "error": {
        "message": "There is no model 'm'; there are: a, b.",
        "type": "not_found_error",
        "code": "model_not_found",
        "param": "model",
        "hint": "Run byzerllm list.",
        "details": {"names": ["a", "b"]},
    }
}


def ndjson(*events: Any, then: list[Step] | None = None) -> Reply:
    """Events a line, with a keep-alive before each."""
    steps: list[Step] = [b"\n" + json.dumps(event).encode() + b"\n" for event in events]
    return Reply([*steps, *(then or [])], headers={"content-type": "application/x-ndjson"}, framing="chunked")


def delta(text: str = "", finish: str | None = None, **more: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text, **more}, "finish_reason": finish}]}


def body(done: subprocess.CompletedProcess[str]) -> str:
    """What was said on stderr after the banner and the line on the runtime."""
    return done.stderr.rpartition("-" * 50 + "\n")[2].removeprefix("Using this machine.\n")


class ScriptedServer(FakeUpstream):
    """A server that says who it is, and otherwise what ``answers`` has for "METHOD /path"."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Reply] = {}
        self.default = self._answer

    def _answer(self, request: Received) -> Reply:
        if request.headers.get("authorization") != "Bearer t0ken":
            return json_reply({"error": {"message": "Wrong token.", "code": "invalid_api_key"}}, 401)
        if request.path == "/admin/server":
            return json_reply({**self.record(), "deployments": 2})
        path = request.path.partition("?")[0]
        return self.answers.get(f"{request.method} {path}", json_reply(UNKNOWN, 404))

    def record(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "token": "t0ken",
            "pid": os.getpid(),
            "supervisor_pid": os.getpid(),
            "runtime": "embedded",
            "version": "1.0.0",
            "home": "/somewhere",
            "started_at": 1700000000.0,
        }

    def announce(self, home: Path, /, **other: object) -> None:
        """Write its server.json, which may be wrong in what ``other`` says."""
        home.mkdir(exist_ok=True)
        (home / "server.json").write_text(json.dumps({**self.record(), **other}))

    def asked(self, method: str) -> list[Received]:
        return [r for r in self.requests if r.method == method and r.path != "/admin/server"]


def on_terminal(byzer: Byzer, *args: str) -> str:
    """What a person sees: both streams are one terminal."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen(byzer.argv(*args), env=byzer.env(), stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how the end of a terminal is told
            while piece := screen.read(4096):
                shown += piece
        text = shown.decode().replace("\r\n", "\n")
        assert process.wait(10) == 0, text
        return text
