"""The server's HTTP API as Python calls. One connection a call: a command makes few, all to this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, NamedTuple

from byzerllm.client.server_file import ServerInfo
from byzerllm.errors import AuthenticationFailed, ByzerError, ServerUnavailable, from_payload

Event = dict[str, Any]

ANSWER_TIMEOUT = 30.0
EVENT_TIMEOUT = 600.0  # between two lines; once it has begun, the server sends blank ones every few seconds


class Upload(NamedTuple):
    """A request body that is not JSON."""

    content_type: str
    content: bytes


class AdminClient:
    """Calls to one server. Every error is a ``ByzerError``: the server's own, or ``ServerUnavailable``."""

    def __init__(self, info: ServerInfo) -> None:
        self.info = info

    def get(self, path: str, *, timeout: float = ANSWER_TIMEOUT) -> dict[str, Any]:
        """The JSON answer of a GET; ``timeout`` in seconds."""
        return self.call("GET", path, timeout=timeout)

    def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | Upload | None = None,
        *,
        timeout: float | None = ANSWER_TIMEOUT,
    ) -> dict[str, Any]:
        """The JSON answer of any request; ``timeout`` in seconds, None waits as long as it takes."""
        with self.open(method, path, body, timeout=timeout) as response:
            content = response.read()
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServerUnavailable(f"{self.info.url}{path} answered with something that is no JSON object.")
        return answer

    def events(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        timeout: float | None = EVENT_TIMEOUT,
    ) -> Generator[Event, None, None]:
        """The objects of an NDJSON answer as they arrive; a ``failed`` event is raised as the error it carries."""
        for line in self.lines(method, path, body, timeout=timeout):
            if not line:
                continue  # a keep-alive
            event: Event = json.loads(line)
            if event["event"] == "failed":
                raise described_error(event.get("error"), 500)
            yield event

    def operation(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        final: tuple[str, ...],
        notify: Callable[[Event], None],
        lost_hint: str,
    ) -> Event:
        """Run to its end what the server reports on event by event, and return the ``final`` event.

        Raises:
            ServerUnavailable: the server went away before; ``lost_hint`` tells how to find out what happened.
        """
        try:
            for event in self.events(method, path, body):
                if event["event"] in final:
                    return event
                notify(event)
        except ServerUnavailable as error:
            error.hint = error.hint or lost_hint
            raise
        raise ServerUnavailable("The server ended the answer before the outcome was known.", hint=lost_hint)

    def lines(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float | None = None
    ) -> Generator[bytes, None, None]:
        """The lines of a streamed answer as they arrive, without their ends."""
        yield from split_lines(self.pieces(method, path, body, timeout=timeout))

    def pieces(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float | None = None
    ) -> Generator[bytes, None, None]:
        """The bytes of a streamed answer as they arrive."""
        with self.open(method, path, body, timeout=timeout) as response:
            while piece := response.read1(65536):  # readline would take a broken-off answer for a complete one
                yield piece

    @contextmanager
    def open(
        self, method: str, path: str, body: dict[str, Any] | Upload | None = None, *, timeout: float | None
    ) -> Iterator[HTTPResponse]:
        """A good answer whose body is still to be read; leaving the block closes the connection, read or not."""
        connection = HTTPConnection(*self.info.address, timeout=timeout)
        headers = {"Authorization": f"Bearer {self.info.token}"}
        content = None
        if body is not None:
            sent = body if isinstance(body, Upload) else Upload("application/json", json.dumps(body).encode())
            headers["Content-Type"], content = sent
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            if response.status >= 400:
                self._refuse(path, response.status, response.read())
            yield response
        except (OSError, HTTPException) as error:
            raise self._lost(error) from None
        finally:
            connection.close()

    def _refuse(self, path: str, status: int, content: bytes) -> None:
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        payload = answer.get("error") if isinstance(answer, dict) else None
        error = described_error(payload, status, content[:200].decode("utf-8", "replace"))
        foreign = f"What answers at {self.info.url} is not the server of {self.info.home}"
        if not isinstance(payload, dict) and status < 500 and path.startswith(("/admin", "/v1/models")):
            raise ServerUnavailable(f"{foreign}: status {status}.", hint="Run byzerllm server start.")
        if isinstance(error, AuthenticationFailed) and path.startswith("/admin"):
            raise ServerUnavailable(f"{foreign}: it refuses its token.", hint="Run byzerllm server start.")
        raise error

    def _lost(self, error: OSError | HTTPException) -> ServerUnavailable:
        url = self.info.url
        if isinstance(error, ConnectionRefusedError):
            return ServerUnavailable(
                f"No server answers at {url}; {self.info.home}/server.json is of one that no longer runs.",
                hint="byzerllm up starts a new one and restores what was deployed.",
            )
        if isinstance(error, TimeoutError):
            return ServerUnavailable(
                f"The server at {url} (pid {self.info.pid}) did not answer in time.",
                hint=f"Its log is {self.info.home}/logs/server.log.",
                details={"timed_out": True},
            )
        return ServerUnavailable(f"The connection to the server at {url} broke off.")


def answers(info: ServerInfo, timeout: float = 5.0) -> bool:
    """Whether this very server answers: at that address there may be another by now.

    Raises:
        ServerUnavailable: nothing came within ``timeout`` seconds.
    """
    try:
        return AdminClient(info).get("/admin/server", timeout=timeout).get("pid") == info.pid
    except ByzerError as error:  # another program's answer, or none
        if error.details.get("timed_out"):
            raise
        return False


def split_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a text that comes in pieces, without their ends; the last one may have none."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
    if rest:
        yield rest


def described_error(payload: Any, status: int, text: str = "") -> ByzerError:
    """The error that an answer's ``error`` member describes; ``text`` is shown when it describes none."""
    if isinstance(payload, dict):
        return from_payload(payload, status)
    return from_payload({"message": f"the server answered with status {status}: {text}".rstrip(": ")}, status)
