"""The real ``byzerllm`` command, run in subprocesses with its own ``$BYZERLLM_HOME``.

    def test_it(byzer: Byzer) -> None:
        byzer.run("deploy", "--model", "m", "--pretrained_model_type", "saas/mock")
        assert byzer.json("stat", "--model", "m")["total_workers"] == 1
        assert byzer.http("GET", "/v1/models").status == 200

Nothing that a ``Byzer`` started survives ``stop()``: every process is found by the home in its environment.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

T = TypeVar("T")


def _session(process: psutil.Process) -> int:
    """The session that it is in; 0 where that is not known, as it has just ended."""
    try:
        return os.getsid(process.pid)
    except OSError:
        return 0


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def eventually(predicate: Callable[[], T], timeout: float = 10.0, what: str = "") -> T:
    """The first true value of ``predicate``; fails after ``timeout`` seconds with the last value it had.

    An AssertionError from the predicate counts as "not yet", so it may hold assertions and return True.
    """
    deadline = time.monotonic() + timeout
    while True:
        last: T | AssertionError
        try:
            last = predicate()
            if last:
                return last
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or 'the condition'}; last: {last!r}")
        time.sleep(0.02)


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read to its end. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Byzer:
    """One ``$BYZERLLM_HOME`` and the commands run in it, all with ``environ`` added to their environment."""

    def __init__(self, home: Path, **environ: str) -> None:
        self.home = home
        # A port of its own: several test runs on one machine must not race for the default one.
        self.environ = {"BYZERLLM_HOME": str(home), "BYZERLLM_PORT": str(free_port()), **environ}

    # Commands

    def run(
        self,
        *args: str | Path,
        code: int | None = 0,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and require its exit code (None: any). None may show a traceback."""
        done = subprocess.run(
            self.argv(*args),
            env=self.env(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        shown = f"byzerllm {' '.join(map(str, args))}\n{done.stdout}\n{done.stderr}"
        assert "Traceback (most recent call last)" not in shown, shown
        assert code is None or done.returncode == code, f"exit code {done.returncode}, not {code}: {shown}"
        return done

    def json(self, *args: str | Path, timeout: float = 60.0) -> Any:
        """What a command writes on stdout, which must be one JSON document."""
        return json.loads(self.run(*args, timeout=timeout).stdout)

    @contextlib.contextmanager
    def background(self, *args: str | Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
        """A command that stays in the foreground (``serve``, ``logs -f``); killed at the end."""
        process = subprocess.Popen(
            self.argv(*args),
            env=self.env(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    @staticmethod
    def argv(*args: str | Path) -> list[str]:
        return [sys.executable, "-m", "byzerllm", *map(str, args)]

    def env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The whole environment of a command."""
        return {**os.environ, **self.environ, **(more or {})}

    # The server

    @property
    def server(self) -> dict[str, Any]:
        """What server.json says; FileNotFoundError when no server has written it."""
        found: dict[str, Any] = json.loads((self.home / "server.json").read_text())
        return found

    @property
    def url(self) -> str:
        return str(self.server["url"])

    @property
    def token(self) -> str:
        return str(self.server["token"])

    @property
    def pid(self) -> int:
        return int(self.server["pid"])

    def http(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """One request to the server with the admin token; ``body`` is JSON unless it is bytes."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {
            "authorization": f"Bearer {self.token}",
            "content-type": "application/json",
            **(headers or {}),
        }
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def log_tail(self, lines: int = 60) -> str:
        """The last lines of the server's log and of every engine's, for the report of a failed test."""
        parts = [
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for path in sorted((self.home / "logs").rglob("*.log"))
        ]
        return "\n".join(parts)

    # The end

    def processes(self) -> list[psutil.Process]:
        """Every process that runs in this home: commands, supervisor, server, engines, and what these have started: one
        that gives itself a title has no environment to be known by."""
        everyone = [p for p in psutil.process_iter() if p.pid != os.getpid()]
        ours = {p.pid for p in everyone if self._is_ours(p)}  # an engine is the first of a session of its own
        return [p for p in everyone if p.pid in ours or _session(p) in ours]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("BYZERLLM_HOME") == str(self.home)
        except (psutil.Error, OSError):  # another user's process, or one that has just ended
            return False

    def stop(self) -> None:
        """Kill whatever still runs in this home, until nothing is left."""
        helpers = self._helpers()
        # Repeated, since a supervisor may have started a server between the look and the kill.
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process not in helpers:
                        process.kill()
            psutil.wait_procs(left, timeout=5)
            helpers = []

    def _helpers(self) -> list[psutil.Process]:
        """What ends by itself when its engine does, and removes what vLLM has outside of its memory."""
        found = self.processes()
        leaders = {p.pid for p in found if _session(p) == p.pid and "byzerllm.engines.host.vllm" in _words(p)}
        return [p for p in found if p.pid not in leaders and _session(p) in leaders]
