"""Helpers for tests of the gateway: instances on a fake upstream, and a client that sends any bytes it likes."""

from __future__ import annotations

import http.client
import io
import json
import socket
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from tests.harness import Answer, Byzer, eventually

if TYPE_CHECKING:
    from types import TracebackType

    from tests.fakes import FakeUpstream

UPSTREAM_MODEL = "vendor-model"
MESSAGES = [{"role": "user", "content": "hello"}]
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": UPSTREAM_MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


def delta(content: str, finish: str | None = None) -> dict[str, Any]:
    """One event of a chat stream."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def chat(model: str, **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": model, "messages": MESSAGES, **fields}


def deploy(
    byzer: Byzer, name: str, upstream: FakeUpstream | str, spec: dict[str, Any] | None = None, **params: object
) -> None:
    """A SaaS instance on that upstream (or base URL without ``/v1``), unverified; ``params`` are ``saas.*``.

    Asked of the running server itself: many tests need one each, and the command line has tests of its own.
    """
    given = {
        "base_url": f"{upstream if isinstance(upstream, str) else upstream.url}/v1",
        "api_key": "sk-upstream",
        "model": UPSTREAM_MODEL,
        **params,
    }
    words = {f"saas.{key}": str(value) for key, value in given.items()}
    whole = {"name": name, "pretrained_model_type": "saas/openai", "infer_params": words, **(spec or {})}
    answer = byzer.http("POST", "/admin/deployments", {"spec": whole, "verify": False})
    assert json.loads(answer.body.splitlines()[-1]).get("event") == "ready", answer.body


def undeploy(byzer: Byzer, name: str) -> None:
    """Remove it without draining; it may be gone already."""
    assert byzer.http("DELETE", f"/admin/deployments/{name}?force=1").status in (200, 404)


def post(byzer: Byzer, model: str, path: str = "/v1/chat/completions", timeout: float = 20.0, **fields: Any) -> Answer:
    """One request, with the answer read to its end."""
    return byzer.http("POST", path, chat(model, **fields), timeout=timeout)


def detail(byzer: Byzer, model: str) -> dict[str, Any]:
    """``stat --detail`` of an instance, straight from the server."""
    found: dict[str, Any] = byzer.http("GET", f"/admin/deployments/{model}/stat?detail=1").json()
    return found


def wait_free(byzer: Byzer, model: str, timeout: float = 2.0) -> None:
    """Until every slot of the instance is free and nobody waits for one."""

    def free() -> bool:
        stat = detail(byzer, model)
        assert [worker["active_task"] for worker in stat["worker_state"]] == [0] * stat["total_workers"]
        assert stat["queue"]["waiting"] == 0
        return True

    eventually(free, timeout, f"all slots of {model} are free")


class Client:
    """A connection to the server that sends what it is told and reads answers one by one."""

    def __init__(self, byzer: Byzer | int, *, receive_buffer: int = 0, timeout: float = 20.0) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", byzer if isinstance(byzer, int) else urlsplit(byzer.url).port))
        self._file = _KeptOpen(cast("Any", self.socket.makefile("rb", buffering=0)))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def post(self, body: Any, path: str = "/v1/chat/completions", version: str = "1.1", **headers: str) -> None:
        """Send one request; ``x_y="z"`` makes a header ``x-y: z``."""
        self.send(request_bytes(body, path, version, **headers))

    def answer(self, method: str = "POST") -> Answer:
        """The next answer, whole. http.client's exceptions say what is wrong with one that is not."""
        response = http.client.HTTPResponse(cast("Any", self), method=method)
        response.begin()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def makefile(self, _: str) -> io.BufferedReader:
        return self._file

    def read_some(self) -> bytes:
        """Whatever comes next; ``b""`` at the end."""
        return self._file.read1(65536)

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to the first ``mark``, and what came along behind it."""
        data = b""
        while mark not in data:
            piece = self.read_some()
            assert piece, f"the connection ended before {mark!r}: {data!r}"
            data += piece
        return data

    def at_end(self) -> bool:
        """Whether the server has closed the connection and nothing is left to read; waits for either."""
        return self._file.read1(1) == b""

    def close(self) -> None:
        self.socket.close()
        self._file.really_close()


class _KeptOpen(io.BufferedReader):
    """http.client closes the file of an answer at its end; the next answer is read from the same one."""

    def close(self) -> None:
        pass

    def really_close(self) -> None:
        super().close()


def request_bytes(body: Any, path: str = "/v1/chat/completions", version: str = "1.1", **headers: str) -> bytes:
    """A whole POST request as bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"host": "localhost", "content-type": "application/json", "content-length": str(len(data))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"POST {path} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + data
