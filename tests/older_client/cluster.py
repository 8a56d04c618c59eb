"""A Ray cluster of one node, in the release that the older client has, with this project installed beside it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psutil
from tests.harness import Byzer, free_port

ROOT = Path(__file__).resolve().parents[2]
OLDER = ROOT / ".venvs" / "older-client" / "bin"
OURS = ROOT / ".venvs" / "ray-2.47" / "bin"
PROGRAM = Path(__file__).with_name("program.py")
INSTALL_SECONDS = 1500


def install() -> None:
    """Both environments; a matter of minutes the first time, of a moment after that."""
    subprocess.run([ROOT / "scripts" / "older-client-venvs"], check=True, timeout=INSTALL_SECONDS)


class RayByzer(Byzer):
    """The ``byzerllm`` command of the environment with Ray, on the cluster at ``address``."""

    def __init__(self, home: Path, address: str, **environ: str) -> None:
        super().__init__(home, RAY_ADDRESS=address, **environ)

    @staticmethod
    def argv(*args: str | Path) -> list[str]:
        return [str(OURS / "python"), "-m", "byzerllm", *map(str, args)]


class RayCluster:
    """Everything that it starts has its folder in the environment, and is found by that at the end."""

    def __init__(self, home: Path) -> None:
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a short path: sockets lie in it
        self.address = f"127.0.0.1:{self._port()}"
        self._environ = {"RAY_TMPDIR": self._folder, "RAY_USAGE_STATS_ENABLED": "0"}
        self.byzer = RayByzer(home, self.address, **self._environ)
        self._program: subprocess.Popen[str] | None = None

    @staticmethod
    def _port() -> int:
        """One that Ray does not give to its workers (10002 to 19999)."""
        while 10_000 <= (port := free_port()) < 20_000:
            pass
        return port

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        arguments = ["--head", "--port", port, "--num-cpus", "4", "--include-dashboard", "false"]
        command = [str(OURS / "ray"), "start", *arguments, "--disable-usage-stats"]
        done = subprocess.run(command, env=self.byzer.env(), capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def call(self, name: str, **arguments: Any) -> Any:
        """What a function of ``program.py`` returns, which calls the published client. All share one process."""
        if self._program is None:
            self._program = subprocess.Popen(
                [OLDER / "python", PROGRAM, self.address],
                env=self._older_environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        print(json.dumps([name, arguments]), file=self._program.stdin, flush=True)
        returned, failure = json.loads(self._program.stdout.readline())
        assert failure is None, failure
        return returned

    def older(self, *arguments: str) -> str:
        """What the published command line writes on stdout."""
        command = [str(OLDER / "byzerllm"), *arguments, "--ray_address", self.address]
        done = subprocess.run(
            command, env=self._older_environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def _older_environ(self) -> dict[str, str]:
        return {**os.environ, **self._environ}

    def stop(self) -> None:
        if self._program is not None:
            with self._program:
                self._program.kill()
        self.byzer.stop()
        while left := [p for p in psutil.process_iter() if self._is_ours(p)]:
            for process in left:
                process.kill()
            psutil.wait_procs(left, timeout=5)
        subprocess.run(["rm", "-rf", self._folder], check=True)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("RAY_TMPDIR") == self._folder
        except (psutil.Error, OSError):  # another user's process, or one that has just ended
            return False
