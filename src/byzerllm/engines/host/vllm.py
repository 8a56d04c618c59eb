"""The process of one vLLM worker: vLLM's own OpenAI server, with what depends on the model and on this machine.

vLLM has processes of its own, which would live on if this one were killed, and keeps sockets, files and shared memory,
which would stay. A small watcher ends and removes them then.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import runpy
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from byzerllm.engines import cpus, hf_folder, vllm_memory
from byzerllm.engines.host import turn
from byzerllm.engines.host.templates import flaw_of, template_text
from byzerllm.engines.host.turn import Turn
from byzerllm.engines.host.vllm_guard import Guard
from byzerllm.engines.hosting import OPTIONS_VARIABLE
from byzerllm.errors import InvalidInput

BIND = "VLLM_CPU_OMP_THREADS_BIND"
_GUARD = "byzerllm.engines.host.vllm_guard.Guard"
# Where vLLM has had its server, the newest first.
_SERVERS = ("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.openai.api_server")
_WATCH_SECONDS = 0.5
_CLEAN_SECONDS, _LOOK_SECONDS = 3.0, 0.05
MAX_LOG = 64 * 2**20


def main() -> None:
    """Serve until SIGTERM. The arguments are vLLM's own."""
    given = json.loads(os.environ.pop(OPTIONS_VARIABLE))
    check_template(given["values"])
    watch()
    sys.argv += completed(given, os.environ)
    os.environ.update(threads(given, os.environ))
    close_hub(given, os.environ)
    if given["shares_gpu"]:
        Guard.turn = wait_turn(os.environ)
    sys.argv += ["--middleware", _GUARD]  # added last, it is asked first
    _say("phase: importing vLLM")
    for name in _SERVERS:
        if _exists(name):
            _run(name)
            return
    raise SystemExit(f"this vLLM has no server where byzerllm looks for it: {', '.join(_SERVERS)}")


def check_template(values: Mapping[str, Any]) -> None:
    """End the process if the chat template is none: vLLM would start with it, and every chat fail."""
    template = values.get("chat_template", "")
    # What is neither a file nor has a brace may be a name that vLLM knows.
    if ("{" in template or Path(template).is_file()) and (flaw := flaw_of(template_text(template))):
        _say(f"cause: backend.chat_template cannot be read as a Jinja template: {flaw}.")
        raise SystemExit(1)


def _say(text: str) -> None:
    sys.stdout.write(f"byzerllm: {text}\n")
    sys.stdout.flush()


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _run(name: str) -> None:
    server = importlib.import_module(name)
    if hasattr(server, "main"):
        server.main()
    else:  # an older one, which is a program only
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def completed(given: Mapping[str, Any], environ: Mapping[str, str]) -> list[str]:
    """Arguments that depend on the model's files and on this machine."""
    folder = _folder(given)
    if folder is not None and folder.chat_template is None and "chat_template" not in given["values"]:
        Guard.advice = (
            f"The model has no chat template: {folder.path} has none in {', '.join(hf_folder.TEMPLATE_FILES[:3])}. "
            "Deploy it with backend.chat_template=/path/to/template.jinja, or use /v1/completions."
        )
    return [] if given["on_gpu"] else _for_cpu(given, folder, environ)


def _folder(given: Mapping[str, Any]) -> hf_folder.Folder | None:
    try:
        return hf_folder.read(given["model_path"], tokenizer=False)
    except InvalidInput:  # a name on the hub, or a form that only vLLM knows
        return None


def _for_cpu(given: Mapping[str, Any], folder: hf_folder.Folder | None, environ: Mapping[str, str]) -> list[str]:
    values = given["values"]
    words = []
    dtype = vllm_memory.cpu_dtype(folder) if folder is not None and "dtype" not in values else None
    if dtype:
        words.append(f"--dtype={dtype}")
    sized = {"kv_cache_memory_bytes", "gpu_memory_utilization", "device_memory_utilization"} & values.keys()
    if not sized and "VLLM_CPU_KVCACHE_SPACE" not in environ:
        words.append(f"--kv-cache-memory-bytes={vllm_memory.cpu_cache(folder, values, given['slots'])}")
    return words


def threads(given: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for the number of threads on CPUs. By itself vLLM binds its threads to cores, every worker of a machine
    to the same ones."""
    if given["on_gpu"] or BIND in environ:
        return {}
    number = given["threads"]
    if not number and given["sharers"] > 1:
        number = max(1, cpus.physical() // given["sharers"])
    if number:
        return {BIND: "nobind", "OMP_NUM_THREADS": str(number)}
    return {BIND: "nobind"} if "OMP_NUM_THREADS" in environ else {}


def close_hub(given: Mapping[str, Any], environ: MutableMapping[str, str]) -> None:
    """Keep vLLM from asking the hub for what is here; a deployer's own setting stays."""
    if given["offline"]:
        environ.setdefault("HF_HUB_OFFLINE", "1")


def wait_turn(environ: Mapping[str, str]) -> Turn:
    """Wait until no other worker is starting on the same GPU."""

    def waiting() -> None:
        _say("phase: waiting for workers that start on the same GPU")

    return Turn(turn.path_of(environ["CUDA_VISIBLE_DEVICES"]), waiting)


def watch() -> None:
    """Start the watcher; it is in this process's group."""
    leader = os.getpid()
    if os.getpgrp() == leader:
        folder = take_folder(os.environ)
        if os.fork() == 0:
            _watch(leader, folder)


def take_folder(environ: MutableMapping[str, str]) -> str:
    """Make a folder for all temporary files and sockets of vLLM's processes. This one's own ``tempfile`` goes on with
    the folder of all workers, where they meet for their turn; what is compiled is kept there too, for the next start.
    """
    environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/byzerllm-{os.getuid()}-inductor")
    folder = tempfile.mkdtemp(prefix="byzerllm-")
    environ.update(TMPDIR=folder, VLLM_RPC_BASE_PATH=folder)
    return folder


def _watch(leader: int, folder: str) -> NoReturn:
    """End the whole group once its leader is gone, and remove the folder. The log is emptied when it has grown too
    large, as a worker may run for months."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == leader:
        log = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(log.st_mode) and log.st_size > MAX_LOG:
            os.ftruncate(sys.stdout.fileno(), 0)
        time.sleep(_WATCH_SECONDS)
    _end_others(leader)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(leader, signal.SIGKILL)
    os._exit(0)


def _end_others(leader: int) -> None:
    """Kill the group but for this process and for Python's tracker, which removes their shared memory and ends when all
    who have it are gone."""
    deadline = time.monotonic() + _CLEAN_SECONDS
    while (others := list(_others(leader))) and time.monotonic() < deadline:
        for process in others:
            with suppress(psutil.Error):
                if not any("resource_tracker" in word for word in process.cmdline()):
                    process.kill()
        time.sleep(_LOOK_SECONDS)


def _others(leader: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            ours = os.getpgid(process.pid) == leader and process.pid != os.getpid()
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                yield process


if __name__ == "__main__":
    main()
