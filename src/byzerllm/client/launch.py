"""The server that a command talks to: found, and started when none runs. Two commands at once start one server.

``settings`` say which: this machine's own, which is started here, or a Ray cluster's (``ray_server.py``).
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from byzerllm.client import ray_server
from byzerllm.client.admin import AdminClient, answers
from byzerllm.client.locate import is_this_machine
from byzerllm.client.server_file import (
    ServerInfo,
    prepare_folder,
    process_exists,
    read_server_file,
    recorded_server,
)
from byzerllm.errors import ByzerError, InvalidInput, ServerUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from byzerllm.settings import Settings

START_LIMIT = 15.0
LOCK_LIMIT = START_LIMIT + 5.0
POLL = 0.01
LOG_LINES = 15

# Exit codes of byzerllm.runtime.supervisor that mean something to whoever started it.
UNUSABLE = 2
ALREADY_RUNNING = 3

_NOTHING_RUNS_HINT = "byzerllm deploy starts one; byzerllm up also restores what was deployed before."


def connect(settings: Settings) -> AdminClient:
    """The client of the server that is there; this machine's own is not asked yet whether it still runs.

    Raises:
        ServerUnavailable: there is no server.
    """
    if settings.ray_address:
        info, where = ray_server.running_server(settings), f" on the Ray cluster at {settings.ray_address}"
    else:
        info, where = read_server_file(settings.server_file), ""
    if info is None:
        raise ServerUnavailable(f"No server is running{where}, so nothing is deployed.", hint=_NOTHING_RUNS_HINT)
    return AdminClient(info)


def ensure_server(settings: Settings, notify: Callable[[str], None]) -> ServerInfo:
    """The running server, started first when there is none; ``notify`` is told so.

    Raises:
        InvalidInput: ``$BYZERLLM_HOME`` cannot be used.
        ServerUnavailable: it did not start, with the last lines of its log; or one runs and does not answer.
    """
    if settings.ray_address:
        return ray_server.ensure_server(settings, notify)
    info = running_server(settings)
    if info is not None:
        return info
    prepare_folder(settings.home)
    prepare_folder(settings.logs)
    with _start_lock(settings.home / "start.lock"):
        return running_server(settings) or _start(settings, notify)


def running_server(settings: Settings) -> ServerInfo | None:
    """The server that runs, if it is the one that answers at its address; else None.

    Raises:
        ServerUnavailable: it runs, and does not answer.
    """
    if settings.ray_address:
        return ray_server.running_server(settings)
    info = recorded_server(settings.server_file)
    return info if info is not None and _answers(info) else None


def is_left(info: ServerInfo) -> bool:
    """Whether anything of a server that was told to stop is still there, as far as this machine can see."""
    if not info.ray_address:
        return process_exists(info.pid) or process_exists(info.supervisor_pid)
    if is_this_machine(info.address[0]):
        return process_exists(info.pid)
    try:
        return answers(info)
    except ServerUnavailable:
        return True  # slow is not gone


def _answers(info: ServerInfo) -> bool:
    try:
        return answers(info)
    except ServerUnavailable:
        if process_exists(info.pid):
            raise
        return False


@contextmanager
def _start_lock(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_LIMIT
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServerUnavailable(
                        f"Another command has been starting the server for {LOCK_LIMIT:.0f} s.",
                        hint="Run byzerllm server status.",
                    ) from None
                time.sleep(POLL)
        yield
    finally:
        os.close(descriptor)  # which also unlocks


def _start(settings: Settings, notify: Callable[[str], None]) -> ServerInfo:
    notify("Starting the server ...")
    left_over = recorded_server(settings.server_file)
    log_start = settings.server_log.stat().st_size if settings.server_log.exists() else 0
    process = _spawn(settings)
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        info = recorded_server(settings.server_file)
        if info is not None and info != left_over and _answers(info):
            return info
        code = process.poll()
        if code not in (None, ALREADY_RUNNING):
            raise _failed(code, _tail(settings.server_log, log_start))
        time.sleep(POLL)
    raise ServerUnavailable(
        f"The server was not ready after {START_LIMIT:.0f} s.{_tail(settings.server_log, log_start)}",
        hint=f"Its log is {settings.server_log}.",
    )


def _spawn(settings: Settings) -> subprocess.Popen[bytes]:
    log = os.open(settings.server_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "byzerllm.runtime.supervisor"],
            cwd="/",  # it must not hold on to the folder, nor import what lies in it
            env={**os.environ, "BYZERLLM_HOME": str(settings.home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)


def _failed(code: int | None, tail: str) -> ByzerError:
    error = InvalidInput if code == UNUSABLE else ServerUnavailable
    return error(f"The server could not be started (exit code {code}).{tail}", details={"exit_code": code})


def _tail(log: Path, start: int) -> str:
    """What this start wrote to the log, at most its last lines, each on its own line."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "".join(f"\n  {line}" for line in lines[-LOG_LINES:])
