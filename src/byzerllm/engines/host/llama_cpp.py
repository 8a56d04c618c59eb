"""The process of one llama.cpp worker: llama.cpp's own HTTP server on a private port.

It is told all in one environment variable and ends on SIGTERM. It goes on when the server that started it dies, since
the next one takes it back. It imports little: its memory is the model's.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import stat
import sys
from pathlib import Path
from typing import Any, NoReturn

from byzerllm.engines import cpus, gguf
from byzerllm.engines.host import modules
from byzerllm.engines.hosting import OPTIONS_VARIABLE
from byzerllm.errors import InvalidInput

POOLING_MEAN = 1
DEFAULT_BATCH = 2048
MAX_DEVICES = 128
MAX_LOG = 64 * 1024 * 1024
LOG_CHECK_SECONDS = 60.0


def main() -> NoReturn:
    """Load the model, serve, and end with exit code 0 on SIGTERM; 1, with the cause as the last line, if it fails."""
    given = json.loads(os.environ.pop(OPTIONS_VARIABLE))
    try:
        model = str(gguf.model_file(given["model_path"]))
        header = gguf.check_model(model)
    except InvalidInput as error:
        _fail(str(error))
    values = _complete(given["values"], given["slots"], header)
    _server = _serve(model, values, given)  # it serves as long as this object lives
    _say(f"serving {given['values']['model_alias']} on port {given['port']}, {given['slots']} slots")
    _wait()
    # llama.cpp's own end would wait for the last byte of every answer, for ever if a reader has stopped reading.
    os._exit(0)


def _complete(values: dict[str, Any], slots: int, header: gguf.Header) -> dict[str, Any]:
    """Fill in what depends on the model and on this machine."""
    values = dict(values)
    asked = values.get("n_ctx")
    context = gguf.slot_context(header, asked)
    if asked and asked > context:
        _say(f"note: The context is {context} tokens, for which the model was trained, not n_ctx={asked}.")
    values["n_ctx"] = context * slots
    values["n_parallel"] = slots
    share = max(1, cpus.physical() // values.pop("sharers"))
    threads = values.setdefault("cpuparams.n_threads", share)
    values.setdefault("cpuparams_batch.n_threads", threads)
    values["fit_params"] = values["n_gpu_layers"] < 0  # else it would change what was asked for
    if values.get("chat_template", "").endswith(".jinja"):
        values["chat_template"] = Path(values["chat_template"]).read_text("utf-8")
    if values.get("embedding"):
        # An embedding is computed in one piece: what does not fit into the physical batch would be refused.
        values["n_ubatch"] = values["n_batch"] = values.get("n_batch", DEFAULT_BATCH)
        if header.pooling_type is None:
            values.setdefault("pooling_type", POOLING_MEAN)
    return values


def _serve(model: str, values: dict[str, Any], given: dict[str, Any]) -> Any:
    try:
        xllamacpp = modules.load("xllamacpp")
    except (ImportError, OSError) as error:
        _fail(f"xllamacpp cannot be imported: {error}. Run: byzerllm engine install llama_cpp")
    if values.pop("gpus") and values["n_gpu_layers"] and not _has_gpu(xllamacpp):
        _fail(
            "n_gpu_layers needs an xllamacpp that was built for this machine's GPU; this one knows none. Install such a"
            " build (https://github.com/xorbitsai/xllamacpp), or deploy with n_gpu_layers=0"
        )
    params = xllamacpp.CommonParams()
    adapters = values.pop("lora_adapters", [])
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, scale) for path, scale in adapters]
    if "tensor_split" in values:
        values["tensor_split"] = (values["tensor_split"] + [0.0] * MAX_DEVICES)[:MAX_DEVICES]
    values["model_alias"] = {values["model_alias"]}
    for name, value in {**values, **_private(model, given)}.items():
        *path, attribute = name.split(".")
        setattr(functools.reduce(getattr, path, params), attribute, value)
    try:
        return xllamacpp.Server(params)
    except (RuntimeError, ValueError, OverflowError) as error:
        _fail(f"llama.cpp could not load {model} ({str(error).rstrip('.')}); the lines above say why")


def _has_gpu(xllamacpp: Any) -> bool:
    return any(
        device["type"] != xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
        for device in xllamacpp.get_device_info()
    )


def _private(model: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not the user's: for this one client, and nothing beside the OpenAI API."""
    return {
        "model.path": model,
        "hostnames": [given["host"]],
        "port": given["port"],
        "api_keys": [given["token"]],
        "cors_origins": "",
        "cors_credentials": False,
        "ui": False,
        "endpoint_slots": False,
        "endpoint_props": False,
        "endpoint_metrics": False,
        "offline": True,
    }


def _wait() -> None:
    """Return on SIGTERM or SIGINT. The log is emptied when it has grown too large, as a worker may run for months."""
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    # The signal may be delivered to one of llama.cpp's threads; the pipe wakes this one all the same.
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    while not select.select([heard], [], [], LOG_CHECK_SECONDS)[0]:
        log = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(log.st_mode) and log.st_size > MAX_LOG:
            os.ftruncate(sys.stdout.fileno(), 0)


def _say(text: str) -> None:
    sys.stdout.write(f"byzerllm: {text}\n")
    sys.stdout.flush()


def _fail(text: str) -> NoReturn:
    _say(text)
    os._exit(1)


if __name__ == "__main__":
    main()
