"""The process of one worker of the engines that have no server of their own.

It is told all in one environment variable, answers /health with 503 while it loads, and ends on SIGTERM. It goes on
when the server that started it dies, since the next one takes it back.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NoReturn

from byzerllm.engines import cpus
from byzerllm.engines.host import cuda
from byzerllm.engines.host.loading import fail, phase, say
from byzerllm.engines.hosting import OPTIONS_VARIABLE
from byzerllm.engines.recipes import pinned

OF_A_SHARE = 0.95  # the rest is CUDA's own
KEEP_ALIVE = 3600  # seconds: the gateway keeps its connections

# What the libraries raise for a folder or a value that is not as it must be: the message says it all.
EXPECTED = (ImportError, OSError, ValueError)

# What loads the models of each task: ``load(path, values, slots)``.
LOADERS = {
    "text": "byzerllm.engines.host.causal_lm",
    "multimodal": "byzerllm.engines.host.multimodal_chat",
    "embedding": "byzerllm.engines.host.embedding",
    "reranker": "byzerllm.engines.host.reranking",
    "transcription": "byzerllm.engines.host.transcription",
    "speech": "byzerllm.engines.host.speech",
    "image": "byzerllm.engines.host.painting",
    "deepspeed": "byzerllm.engines.host.deepspeed_lm",
    "sensevoice": "byzerllm.engines.host.sensevoice",
}
# Those that answer what another one answers.
ANSWERS_AS = {"multimodal": "text", "deepspeed": "text", "sensevoice": "transcription"}


def main() -> NoReturn:
    """Serve until SIGTERM, which ends it with exit code 0; 1, with the cause as the last line, if it fails."""
    given = json.loads(os.environ.pop(OPTIONS_VARIABLE))
    # How long a thread that waits for its next piece of work keeps its core busy. By itself it is so long that a step
    # of a model took ten times its time whenever another process needed the core; none at all costs a third when none
    # does.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    phase("importing libraries")
    try:
        import uvicorn

        from byzerllm.engines.host.app import Application
    except ImportError as error:
        fail(f"{error}: the engine's environment is not complete. Run: byzerllm engine install {given['engine']}")
    application = Application(given["name"], ANSWERS_AS.get(given["task"], given["task"]), given["token"])

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # Its own end would wait for the last byte of every answer, for ever if a reader has stopped reading.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: os._exit(0))
            yield

    threading.Thread(target=_load, args=(application, given), name="load", daemon=True).start()
    config = uvicorn.Config(
        application,
        host=given["host"],
        port=given["port"],
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE,
        server_header=False,
    )
    Server(config).run()
    sys.exit(1)


def _load(application: Any, given: dict[str, Any]) -> None:
    """Load the model into the application, or end the process."""
    try:
        _set_threads(given)
        if not given["gpus"] and "device" not in given["values"]:
            given["values"]["device"] = "cpu"
        keep_to_share(given)
        share = {"sharers": given["sharers"], "gpus": given["gpus"]}  # what the worker has of the machine
        loader = import_module(LOADERS[given["task"]])
        application.model = loader.load(given["model_path"], given["values"] | share, given["slots"])
    except BaseException as error:  # noqa: BLE001  # whatever it is, there is nothing to serve
        if not isinstance(error, EXPECTED):
            traceback.print_exc(file=sys.stdout)
        fail(cause_of(error, given))
    say(f"serving {given['name']} on port {given['port']}, {given['slots']} slots")


def keep_to_share(given: dict[str, Any]) -> None:
    """Let torch take no more of a GPU than the worker's part of it. What it has freed it keeps for itself, until it
    comes to such a limit: others would find no room."""
    if 0 < given["gpus"] < 1 and given["values"].get("device", "cuda") == "cuda":
        import torch

        torch.cuda.set_per_process_memory_fraction(OF_A_SHARE * given["gpus"])


def cause_of(error: BaseException, given: dict[str, Any]) -> str:
    """Why a model could not be loaded, in a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    kind = type(error).__name__
    if kind == "OutOfMemoryError" or "can't allocate memory" in text or "STATUS_ALLOC_FAILED" in text:
        return f"out of memory while loading {given['model_path']}: {text}"
    if of_gpu := cuda.cause(error):
        return of_gpu
    if (
        "the Torchvision library" in text or "torchvision::" in text
    ):  # it is not there, or its build is for another torch
        return (
            "the processor of this model needs the package torchvision, in a build for the torch that is installed. "
            f"Run: {sys.executable} -m pip install --no-deps {pinned('torchvision')}"
        )
    if isinstance(error, ImportError):
        told = re.sub(r"(python3? -m )?pip install", f"{sys.executable} -m pip install", text)
        return f"a package is missing in the engine's environment: {told}"
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return f"the installed transformers does not know this architecture: {text}"
    if "trust_remote_code" in text:
        return f"{given['model_path']} has code of its own: give backend.trust_remote_code=true if you trust it. {text}"
    return f"{given['model_path']} could not be loaded: {kind}: {text}"


def _set_threads(given: dict[str, Any]) -> None:
    import torch

    threads = given["threads"] or max(1, cpus.physical() // given["sharers"])
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
