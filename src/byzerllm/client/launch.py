"""Start the background server when none runs. Two commands at the same moment start one server."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from byzerllm.client.admin import AdminClient
from byzerllm.client.server_file import ServerInfo, process_exists, read_server_file
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


def ensure_server(settings: Settings, notify: Callable[[str], None]) -> ServerInfo:
    """The running server, started first when there is none; ``notify`` is told so.

    Raises:
        InvalidInput: ``$BYZERLLM_HOME`` cannot be used.
        ServerUnavailable: it did not start, with the last lines of its log; or one runs and does not answer.
    """
    info = running_server(settings)
    if info is not None:
        return info
    _prepare(settings.home)
    _prepare(settings.logs)
    with _start_lock(settings.home / "start.lock"):
        return running_server(settings) or _start(settings, notify)


def running_server(settings: Settings) -> ServerInfo | None:
    """The server that ``server.json`` names, if it is the one that answers there; else None.

    Raises:
        ServerUnavailable: its process lives, and does not answer.
    """
    info = _recorded(settings)
    return info if info is not None and _answers(info) else None


def _recorded(settings: Settings) -> ServerInfo | None:
    try:
        return read_server_file(settings.server_file)
    except ServerUnavailable:
        return None  # a damaged file is as good as none: the new server replaces it


def _answers(info: ServerInfo) -> bool:
    """Whether this very server answers: at that address there may be another by now."""
    try:
        return AdminClient(info).get("/admin/server", timeout=5.0).get("pid") == info.pid
    except ServerUnavailable as error:
        if error.details.get("timed_out") and process_exists(info.pid):
            raise
        return False
    except ByzerError:
        return False  # another program's answer


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        reason = "permission denied"
    except OSError as error:
        writable, reason = False, (error.strerror or str(error)).lower()
    if not writable:
        raise InvalidInput(
            f"The folder {folder} cannot be written: {reason}.",
            hint="Set BYZERLLM_HOME to a folder that you can write.",
            param="BYZERLLM_HOME",
        )


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
    left_over = _recorded(settings)
    log_start = settings.server_log.stat().st_size if settings.server_log.exists() else 0
    process = _spawn(settings)
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        info = _recorded(settings)
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
