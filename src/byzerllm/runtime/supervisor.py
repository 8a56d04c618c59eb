"""The small parent of the server: ``python -m byzerllm.runtime.supervisor``.

It holds what must outlive a crash of the server: the lock on the home, the listening socket, so that clients wait for
the next server instead of being refused, and a piece of memory for the secrets that one server hands to the next. It
does nothing else and imports next to nothing, so that it has no reason to die. If it is killed all the same, the server
goes on, and holds the lock on.

Exit codes: the server's own; 1 no port; 2 the home cannot be used; 3 a server of this home runs already.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from byzerllm.errors import InvalidInput
from byzerllm.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMAND = (sys.executable, "-m", "byzerllm.gateway.server")
HOST = "127.0.0.1"
BACKLOG = 4096
PORTS_TO_TRY = 101
EXIT_FAILED, EXIT_HOME, EXIT_LOCKED = 1, 2, 3
KILL_AFTER_DRAIN = 10.0
STEADY_AFTER = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.2, 5.0
_PR_SET_CHILD_SUBREAPER = 36


class Refused(Exception):
    """Why the server cannot be started, and the exit code that says so."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def main() -> int:
    """Read the environment and supervise."""
    try:
        settings = Settings.read()
    except InvalidInput as error:
        _say(str(error))
        return EXIT_HOME
    return supervise(settings, any_port=not os.environ.get("BYZERLLM_PORT"))


def supervise(settings: Settings, *, any_port: bool, command: Sequence[str] = COMMAND) -> int:
    """Run ``command`` as the server until it ends or a signal says so; return the exit code.

    With ``any_port`` the next free port is taken when the one of the settings is not free. The server finds the numbers
    of its descriptors in ``BYZERLLM_LISTEN_FD`` and ``BYZERLLM_SECRETS_FD`` (Linux only).
    """
    try:
        lock = lock_home(settings)
        listener = listen(HOST, settings.port, any_port=any_port)
    except Refused as refused:
        _say(str(refused))
        return refused.code
    environ = {
        **os.environ,
        "BYZERLLM_HOME": str(settings.home),
        "BYZERLLM_LISTEN_FD": str(listener.fileno()),
        "BYZERLLM_SUPERVISOR_PID": str(os.getpid()),
    }
    kept = [lock, listener.fileno()]
    if sys.platform == "linux":
        # The engines of a server that crashed become our children, and we wait for them when they end.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        secrets = os.memfd_create("byzerllm-secrets")
        environ["BYZERLLM_SECRETS_FD"] = str(secrets)
        kept.append(secrets)
    for descriptor in kept:
        os.set_inheritable(descriptor, True)
    _say(f"listening on http://{HOST}:{listener.getsockname()[1]}")
    return _Supervisor(settings, tuple(command), environ).run()


def lock_home(settings: Settings) -> int:
    """Take the home for this server; the lock goes when the last process that inherited it has ended.

    Raises:
        Refused: the folder cannot be used, or another server has it.
    """
    path = settings.home / "server.lock"
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = (
            f"{settings.home} cannot be used: {error.strerror}. Set BYZERLLM_HOME to a folder that you can write to."
        )
        raise Refused(EXIT_HOME, reason) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Refused(EXIT_LOCKED, f"a server for {settings.home} runs already.") from None
    return lock


def listen(host: str, port: int, *, any_port: bool) -> socket.socket:
    """A socket that listens on the port or, with ``any_port``, on the next one that is free.

    Raises:
        Refused: there is none.
    """
    last = min(port + PORTS_TO_TRY, 65536) if any_port else port + 1
    for candidate in range(port, last):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise Refused(EXIT_FAILED, f"cannot listen on {host}:{candidate}: {error.strerror}.") from None
        else:
            return listener
    if any_port:
        raise Refused(EXIT_FAILED, f"no port from {port} to {last - 1} is free. Set BYZERLLM_PORT to another.")
    raise Refused(EXIT_FAILED, f"port {port} is taken. Set BYZERLLM_PORT to another, or end what listens there.")


def _signal_pipe() -> int:
    """A descriptor from which each signal that we act on can be read as one byte."""
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return heard


@dataclass
class _Supervisor:
    """Starts the server and waits, for signals and for nothing else."""

    settings: Settings
    command: tuple[str, ...]
    environ: dict[str, str]
    child: int = 0  # 0 while none runs
    born: float = 0.0
    was_ready: bool = False
    stopping: bool = False
    delay: float = 0.0
    due: float | None = None  # when to start the server again or, while stopping, to kill it
    result: int | None = None
    signals: int = field(default_factory=_signal_pipe)

    def run(self) -> int:
        self._start()
        while self.result is None:
            for number in self._wait():
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._stop(number)
            self._reap()
            if self.due is not None and time.monotonic() >= self.due:
                self._on_time()
        self._remove_server_file()
        return self.result

    def _start(self) -> None:
        self.due = None
        self.born = time.monotonic()
        try:
            self.child = os.posix_spawn(self.command[0], self.command, self.environ)
        except OSError as error:  # no memory or no process left, for the moment; or no such program, for good
            self._over(EXIT_FAILED, f"the server cannot be started: {error.strerror}")
        else:
            _say(f"server started, process {self.child}")

    def _wait(self) -> bytes:
        """The signals that came, by number; empty when ``due`` has passed."""
        timeout = None if self.due is None else max(0.0, self.due - time.monotonic())
        ready, _, _ = select.select([self.signals], [], [], timeout)
        return os.read(self.signals, 4096) if ready else b""

    def _stop(self, number: int) -> None:
        if self.stopping:
            return
        _say(f"{signal.Signals(number).name}: stopping")
        self.stopping = True
        if not self.child:
            self.result = 0
            return
        self._kill(signal.SIGTERM)
        self.due = time.monotonic() + self.settings.drain_timeout + KILL_AFTER_DRAIN

    def _on_time(self) -> None:
        if self.stopping:
            _say("the server did not end in time and is killed")
            self.due = None
            self._kill(signal.SIGKILL)
        else:
            self._start()

    def _kill(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.child, number)

    def _reap(self) -> None:
        """Wait for every process that has ended: the server, and engines that a crashed server left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self.child:
                self._ended(os.waitstatus_to_exitcode(status))

    def _ended(self, code: int) -> None:
        self.was_ready = self.was_ready or self._is_ready()
        self.child = 0
        if time.monotonic() - self.born >= STEADY_AFTER:
            self.delay = 0.0
        if code == 0:
            self.was_ready = False  # it has ended as it was told to
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        self._over(code if code >= 0 else 128 - code, f"the server has ended, {how}")

    def _over(self, code: int, what: str) -> None:
        """There is no server now: end too or, if one has worked before, have the next one started."""
        if self.stopping or not self.was_ready:
            _say(what)
            self.result = code
            return
        _say(f"{what}; starting it again in {self.delay:g} s")
        self.due = time.monotonic() + self.delay
        self.delay = min(LONGEST_DELAY, self.delay * 2 or FIRST_DELAY)

    def _is_ready(self) -> bool:
        """Whether the server of this moment has announced itself."""
        try:
            announced = json.loads(self.settings.server_file.read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(announced, dict) and announced.get("pid") == self.child

    def _remove_server_file(self) -> None:
        """What a server left that could not remove it itself. The lock is ours: no other server wrote it."""
        with suppress(OSError):
            self.settings.server_file.unlink(missing_ok=True)


def _say(text: str) -> None:
    with suppress(OSError):  # a full disk is no reason to die
        sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} supervisor[{os.getpid()}]: {text}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
