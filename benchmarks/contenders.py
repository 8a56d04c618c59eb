"""What is measured: the processes in front of the mock upstream, each pinned to the server's core."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from benchmarks.load import MODEL

KEY = "sk-benchmark"
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
SERVER_CORE = CORES[-1:]
LOAD_CORE = CORES[:1]
MOCK_CORE = CORES[1:2] if len(CORES) > 2 else LOAD_CORE

_NGINX = """
worker_processes 1;
daemon off;
{user}
pid {home}/nginx.pid;
error_log {home}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  keepalive_requests 1000000000;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  upstream mock {{ server 127.0.0.1:{upstream}; keepalive 2048; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://mock; }} }}
  server {{
    listen 127.0.0.1:{stream_port} backlog=4096;
    location / {{ proxy_pass http://mock; proxy_buffering off; }}
  }}
}}
"""


@dataclass(frozen=True)
class Contender:
    """A running gateway, or the mock itself; ``pid`` is the process whose CPU is counted."""

    name: str
    port: int
    stream_port: int
    pid: int
    home: Path | None = None

    @property
    def cpu(self) -> float:
        """Seconds of CPU that the process has used."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def rss(self) -> int:
        """Resident memory in bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)


@contextlib.contextmanager
def on_core(cores: Sequence[int]) -> Iterator[None]:
    """Processes that are started inside run on ``cores``, and so do their children."""
    if not cores:  # this system cannot pin
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 15.0) -> None:
    """Until ``port`` accepts connections.

    Raises:
        RuntimeError: the process ended or took longer.
    """
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} does not listen on port {port}")


def byzerllm_command() -> str:
    """The command that belongs to this Python.

    Raises:
        RuntimeError: it is not installed here.
    """
    command = Path(sys.executable).with_name("byzerllm")
    if not command.exists():
        raise RuntimeError(f"{command} does not exist: install byzerllm into this environment first")
    return str(command)


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, cores: Sequence[int], seconds: float = 15.0, **environ: str
) -> Iterator[int]:
    """A process that listens on ``port``; yields its pid and ends it and its children."""
    with tempfile.TemporaryFile() as log:
        with on_core(cores):
            # In a session of its own, as our server is: Linux may share the cores out by sessions.
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **environ}, start_new_session=True
            )
        try:
            wait_for_port(port, process, seconds)
            yield process.pid
        except RuntimeError as error:
            log.seek(0)
            raise RuntimeError(f"{error}\n{log.read()[-2000:].decode(errors='replace')}") from None
        finally:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()


@contextlib.contextmanager
def mock(*flags: str) -> Iterator[Contender]:
    """The upstream of all others."""
    port = free_port()
    command = [sys.executable, "-m", "byzerllm.providers.mock", "--port", str(port), *flags]
    with running(command, port, MOCK_CORE) as pid:
        yield Contender("direct", port, port, pid)


@contextlib.contextmanager
def nginx(upstream: int, cores: Sequence[int] = SERVER_CORE) -> Iterator[Contender]:
    """nginx as a bare reverse proxy with one worker process; unbuffered for streams.

    Raises:
        RuntimeError: nginx is not installed.
    """
    binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not binary:
        raise RuntimeError("nginx is not installed: the ratios need it (apt-get install nginx-light)")
    with tempfile.TemporaryDirectory(prefix="bench-nginx-") as home:
        port, stream_port = free_port(), free_port()
        user = "user root;" if os.geteuid() == 0 else ""
        config = Path(home, "nginx.conf")
        config.write_text(_NGINX.format(home=home, user=user, upstream=upstream, port=port, stream_port=stream_port))
        command = [binary, "-p", home, "-e", f"{home}/error.log", "-c", str(config)]
        with running(command, port, cores) as master:
            (worker,) = psutil.Process(master).children()
            yield Contender("nginx", port, stream_port, worker.pid)


@contextlib.contextmanager
def byzerllm(upstream: int, *, workers: int = 64, concurrency: int = 1) -> Iterator[Contender]:
    """Our server, started by the real command, with the key check on and one instance on the mock."""
    with tempfile.TemporaryDirectory(prefix="bench-byzerllm-") as home:
        with on_core(SERVER_CORE):
            deploy(Path(home), MODEL, upstream, workers, "--worker_concurrency", str(concurrency))
        try:
            yield server_of(Path(home))
        finally:
            run_byzerllm(Path(home), "server", "stop")


def deploy(home: Path, model: str, upstream: int, workers: int, *flags: str) -> None:
    """``byzerllm deploy`` of an instance on the mock."""
    params = [f"saas.base_url=http://127.0.0.1:{upstream}/v1", "saas.api_key=x", "saas.model=mock-chat"]
    arguments = ["deploy", "--model", model, "--pretrained_model_type", "saas/openai", "--num_workers", str(workers)]
    run_byzerllm(home, *arguments, "--no_verify", *flags, "--infer_params", *params)


def run_byzerllm(home: Path, *arguments: str, seconds: float = 120) -> float:
    """Run the command with its own home; the seconds it took.

    Raises:
        RuntimeError: it failed; the message has what it printed.
    """
    environ = {**os.environ, "BYZERLLM_HOME": str(home), "BYZERLLM_API_KEY": KEY}
    # A Ray cluster that happens to run here is not meant, and a server that is started shall listen on a free port.
    environ |= {"RAY_ADDRESS": "local", "BYZERLLM_PORT": str(free_port())}
    began = time.perf_counter()
    done = subprocess.run(
        [byzerllm_command(), *arguments], env=environ, capture_output=True, text=True, timeout=seconds, check=False
    )
    took = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"byzerllm {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return took


def server_of(home: Path) -> Contender:
    """The server that runs in ``home``."""
    server = json.loads((home / "server.json").read_text())
    port = int(server["url"].rpartition(":")[2])
    return Contender("byzerllm", port, port, int(server["pid"]), home)
