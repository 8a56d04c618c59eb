from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.hf_files import configure, whole_folder, write_json

from byzerllm.engines import vllm_log
from byzerllm.engines.host import vllm as host
from byzerllm.engines.host.vllm_guard import TOKEN, Guard, Message, Receive, Send

NO_TEMPLATE = {"error": {"message": "you must provide a chat template if ...", "code": 400}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return whole_folder(tmp_path)


@pytest.fixture(autouse=True)
def _guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "secret")
    monkeypatch.setattr(Guard, "advice", "")


# What the host adds


def facts(path: Path, values: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    own = {"model_path": str(path), "slots": 100, "on_gpu": False, "threads": 0, "sharers": 1}
    return {**own, "values": values or {}, **given}


def completed(path: Path, values: dict[str, Any] | None = None, **given: Any) -> list[str]:
    return host.completed(facts(path, values, **given), {})


def test_on_a_gpu_nothing_is_added(folder: Path) -> None:
    assert completed(folder, on_gpu=True) == []


def test_on_a_cpu_the_models_type_and_a_cache_that_fits_it(folder: Path) -> None:
    assert completed(folder) == [f"--kv-cache-memory-bytes={64 * 2**20}"]  # bfloat16, which vLLM keeps
    configure(folder, dtype="float32")
    assert completed(folder)[0] == "--dtype=float32"
    assert completed(folder, {"dtype": "bfloat16", "kv_cache_memory_bytes": 5}) == []
    assert completed(folder, {"gpu_memory_utilization": 0.5}) == ["--dtype=float32"]


def test_a_model_that_is_not_here_gets_four_gib(folder: Path) -> None:
    assert completed(folder / "nothing") == [f"--kv-cache-memory-bytes={4 * 2**30}"]


def test_the_users_own_variables_stay(folder: Path) -> None:
    assert host.completed(facts(folder), {"VLLM_CPU_KVCACHE_SPACE": "1"}) == []
    assert host.threads(facts(folder, threads=2), {host.BIND: "0-3"}) == {}
    assert host.threads(facts(folder), {"OMP_NUM_THREADS": "2"}) == {host.BIND: "nobind"}


@pytest.mark.parametrize(
    ("offline", "own", "set_to"), [(True, None, "1"), (True, "0", "0"), (False, None, None), (False, "1", "1")]
)
def test_the_hub_is_closed_unless_the_environment_says_otherwise(
    offline: bool, own: str | None, set_to: str | None
) -> None:
    environ = {"HF_HUB_OFFLINE": own} if own else {}
    host.close_hub({"offline": offline}, environ)
    assert environ.get("HF_HUB_OFFLINE") == set_to


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ({"threads": 3, "sharers": 9}, "3"),
        ({"sharers": 10**6}, "1"),
        ({}, None),  # alone on its machine, it is left to vLLM
        ({"threads": 3, "on_gpu": True}, None),
    ],
)
def test_workers_share_the_threads_of_a_machine(folder: Path, given: dict[str, Any], number: str | None) -> None:
    expected = {host.BIND: "nobind", "OMP_NUM_THREADS": number} if number else {}
    assert host.threads(facts(folder, **given), {}) == expected


def test_a_missing_template_is_told_with_its_folder_and_the_parameter(folder: Path) -> None:
    completed(folder, on_gpu=True)
    assert str(folder) in Guard.advice
    assert "backend.chat_template" in Guard.advice


def test_a_template_is_not_missed(folder: Path) -> None:
    completed(folder, {"chat_template": "/t.jinja"})
    write_json(folder / "tokenizer_config.json", {"chat_template": "{{ x }}"})
    completed(folder)
    assert Guard.advice == ""


# The guard


def call(path: str, token: str = "", *, kind: str = "http", messages: tuple[Message, ...] = ()) -> list[Message]:
    """What a client gets when the server would send ``messages``."""
    sent: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"authorization", token.encode())] if token else []
    asyncio.run(Guard(app)({"type": kind, "path": path, "headers": headers}, receive, send))
    return sent


def answer(status: int, *parts: bytes) -> tuple[Message, ...]:
    start: Message = {"type": "http.response.start", "status": status, "headers": []}
    more = [{"type": "http.response.body", "body": part, "more_body": True} for part in parts[:-1]]
    return (start, *more, {"type": "http.response.body", "body": parts[-1]})


WHOLE = answer(200, b"a", b"b")


@pytest.mark.parametrize("token", ["", "secret", "Bearer ", "Bearer secre", "Bearer secret2", "bearer secret"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/tokenize", "/healthz", "/"])
def test_without_the_token_nothing_is_answered(path: str, token: str) -> None:
    start, body = call(path, token, messages=WHOLE)
    assert start["status"] == 401
    assert json.loads(body["body"])["error"]["code"] == "invalid_api_key"


def test_with_the_token_or_for_health_everything_passes() -> None:
    assert call("/metrics", "Bearer secret", messages=WHOLE) == list(WHOLE)
    assert call("/health", messages=WHOLE) == list(WHOLE)
    assert call("", kind="lifespan", messages=WHOLE) == list(WHOLE)
    assert call("/v1/realtime", kind="websocket", messages=WHOLE) == [{"type": "websocket.close", "code": 1008}]


def test_the_refusal_of_a_chat_without_template_is_made_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "advice", "Give one.")
    data = json.dumps(NO_TEMPLATE).encode()
    start, body = call("/v1/chat/completions", "Bearer secret", messages=answer(400, data[:9], data[9:]))
    assert start["status"] == 400
    assert (b"content-length", str(len(body["body"])).encode()) in start["headers"]
    assert json.loads(body["body"])["error"] == {"message": "Give one.", "code": 400}


@pytest.mark.parametrize("body", [b"{}", b"chat template, but no JSON", b'["chat template"]', b"x" * 100_000])
def test_other_refusals_and_answers_pass_as_they_are(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    monkeypatch.setattr(Guard, "advice", "Give one.")
    start, *rest = call("/v1/chat/completions", "Bearer secret", messages=answer(400, body[:1], body[1:]))
    assert start["status"] == 400
    assert b"".join(message["body"] for message in rest) == body
    assert not rest[-1].get("more_body")
    assert call("/v1/chat/completions", "Bearer secret", messages=WHOLE) == list(WHOLE)


# The log

_WORKER = "(VllmWorker-0 pid=6506) ERROR 11-23 04:51:05 [multiproc_executor.py:953] "


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("(APIServer pid=1) INFO 11-23 [api_utils.py:286] non-default args: {'a': 1}", "reading the configuration"),
        (
            "(EngineCore pid=1) INFO 11-23 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with",
            "starting the engine",
        ),
        ("(Worker pid=9) INFO 11-23 [cpu_model_runner.py:68] Starting to load model /m...", "loading weights"),
        (
            "Loading safetensors checkpoint shards:  38% Completed | 3/8 [00:01<00:02,  2.00it/s]",
            "loading weights 3/8 shards",
        ),
        ("(Worker pid=9) INFO 11-23 [cpu_model_runner.py:87] Warming up model for the compilation...", "warming up"),
        (
            "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  15%|█▍ | 10/67 [00:02]",
            "capturing CUDA graphs 10/67",
        ),
        (
            "(EngineCore pid=8) INFO [kv_cache_utils.py:2327] CPU KV cache size: 390,528 tokens, M",
            "KV cache of 390,528 tokens",
        ),
        ("(APIServer pid=8) INFO [entry.py:140] Starting vLLM server on http://127.0.0.1:1", "starting its server"),
        ("(Worker pid=9) INFO 11-23 [weight_utils.py:1108] Filesystem type for checkpoints: EXT4.", None),
        ("", None),
    ],
)
def test_phases(line: str, phase: str | None) -> None:
    assert vllm_log.phase(line) == phase


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "ValueError: Available memory on node 0 (9.39/12.09 GiB) on startup is less than desired CPU memory "
            "utilization (0.92, 11.12 GiB). On the CPU backend",
            ("9.39 of 12.09 GiB", "11.12 GiB", "backend.gpu_memory_utilization"),
        ),
        (
            "ValueError: Available memory on node 0 (1.00/12.09 GiB) on kv cache allocation is less than requested "
            "memory for kv (2.00 GiB). Decrease",
            ("1.00 of 12.09 GiB", "2.00 GiB", "backend.max_model_len"),
        ),
        (
            "ValueError: Free memory on device cuda:0 (3.15/79.11 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 71.2 GiB). Decrease GPU",
            ("3.15 of 79.11 GiB", "cuda:0", "71.2 GiB", "nvidia-smi"),
        ),
        (
            "ValueError: To serve at least one request with the model's max seq len (131072), (16.00 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (7.50 GiB). Based on the available memory, the "
            "estimated maximum model length is 61440. Try",
            ("131072 tokens", "16.00 GiB", "7.50 GiB", "backend.max_model_len=61440"),
        ),
        ("ValueError: No available memory for the cache blocks. Try increasing", ("no memory for the KV cache",)),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of "
            "23.65 GiB of which 1.10 GiB is free.",
            ("1.96 GiB", "23.65 GiB"),
        ),
        ("ValueError: Model architectures ['FooForCausalLM'] are not supported for now. Sup", ("['FooForCausalLM']",)),
        (
            "The checkpoint you are trying to load has model type `foo` but Transformers does not",
            ("foo", "config.json"),
        ),
        (
            "contains custom code which must be executed to correctly load the model",
            ("backend.trust_remote_code=true",),
        ),
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).", ("11040", "driver")),
        (
            "RuntimeError: CUDA error: no kernel image is available for execution on the device",
            ("no code for this GPU",),
        ),
        ("ImportError: libcudart.so.13: cannot open shared object file: No such file", ("libcudart.so.13",)),
        ("RuntimeError: Failed to infer device type, please set", ("nvidia-smi", "engine install vllm")),
        ("Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor.", ("killed", "RAM")),
        ("host.py: error: unrecognized arguments: --foo-bar", ("--foo-bar",)),
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig\n"
            "  Value error, Total number of attention heads (2) must be divisible. [type=value_error, input_value=A",
            ("refuses this: Total number of attention heads (2) must be divisible.",),
        ),
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig\n"
            "gpu_memory_utilization\n"
            "  Input should be less than or equal to 1 [type=less_than_equal, input_value=90.0, input_type=float]",
            ("refuses gpu_memory_utilization: Input should be less than or equal to 1.",),
        ),
        ("host.py: error: argument --dtype: invalid choice: 'x'", ("--dtype: invalid choice: 'x'",)),
        ("vllm.py: error: Invalid JSON format for --lora-modules: lo", ("refuses its arguments: Invalid JSON",)),
    ],
)
def test_causes(line: str, words: tuple[str, ...]) -> None:
    found = vllm_log.cause(
        f"{_WORKER}Traceback (most recent call last):\n{_WORKER}{line}\nRuntimeError: See root cause above"
    )
    assert found is not None
    for word in words:
        assert word in found
    assert "{" not in found


def test_another_cause_is_the_first_error_and_not_what_followed() -> None:
    tail = (
        "(APIServer pid=1) ERROR [serving.py:1] ValueError: this one was about a request\n"
        f"{_WORKER}WorkerProc failed to start.\n"
        f"{_WORKER}ValueError: Total number of attention heads (2) must be divisible by tensor parallel size (4).\n"
        "(EngineCore pid=1) ERROR [core.py:1] Exception: WorkerProc initialization failed due to an exception in a "
        "background process. See stack trace for root cause.\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'Core': 1}\n"
    )
    expected = "ValueError: Total number of attention heads (2) must be divisible by tensor parallel size (4)."
    assert vllm_log.cause(tail) == expected
    assert vllm_log.cause(tail.splitlines()[0]) is None
    assert vllm_log.cause(tail.splitlines()[-1]) is None
    assert vllm_log.cause("all is well\n") is None


def test_an_engine_that_was_killed_leaves_no_error_of_its_own() -> None:
    line = "(APIServer pid=1) ERROR [core_client.py:818] [shutdown] MPClient: engine core exited unexpectedly; starting"
    assert "RAM" in str(vllm_log.cause(line))
    own = f"(EngineCore pid=1) ERROR [core.py:1] EngineCore encountered a fatal error.\nValueError: this\n{line}"
    assert vllm_log.cause(own) == "ValueError: this"
