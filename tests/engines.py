"""Engines for tests: what must be known of each, and workers of them as real processes."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.harness import Byzer, eventually

import byzerllm
from byzerllm.engines import engine
from byzerllm.runtime.local import LocalProcesses
from byzerllm.spec import DeploymentSpec

if TYPE_CHECKING:
    from byzerllm.engines.base import Engine, EngineOptions, Launch
    from byzerllm.runtime.base import EngineProcess

# Where the engines are: a folder, or "current" for the interpreter that runs the tests; and what they run on: "cpu" or
# "cuda", which scripts/test_gpu sets.
FOLDER = os.environ.get("BYZERLLM_TEST_ENGINES", "")
ON_GPU = os.environ.get("BYZERLLM_TEST_DEVICE") == "cuda"
DEVICES = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] if ON_GPU else ""
START = 300.0  # seconds: imports alone take half a minute on a busy machine
ANSWER = 120.0
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 64}


@dataclass(frozen=True)
class Sample:
    """What the tests must know of one engine: its models (by fixture) and some parameters.

    ``endless`` is what a request adds so that it never ends by itself, on the model ``endless_model``. ``smallest`` is
    the memory that a worker may take at most, in MiB. ``light`` engines start in a second. With a GPU a worker has the
    share ``gpus`` of it, and ``on_gpu`` are more parameters.
    """

    model: str
    random_model: str
    endless_model: str
    endless: dict[str, Any]
    params: dict[str, str]
    bad_value: dict[str, str]
    misspelt: tuple[str, str]
    smallest: int
    light: bool = False
    fails_at_load: dict[str, str] = field(default_factory=dict)
    embedding: tuple[str, dict[str, str]] | None = None
    gpus: float = 1
    on_gpu: dict[str, str] = field(default_factory=dict)


_ENDLESS = {"ignore_eos": True, "max_tokens": 30_000}
SAMPLES = {
    "llama_cpp": Sample(
        model="tiny_gguf",
        random_model="random_gguf",
        endless_model="loop_gguf",
        endless={"max_tokens": -1},
        params={"n_threads": "1"},
        bad_value={"n_ctx": "much"},
        misspelt=("n_gpu_layer", "n_gpu_layers"),
        smallest=120,
        light=True,
        fails_at_load={"chat_template": "{% no_such_thing %}"},
        embedding=("tiny_gguf", {"embedding": "true"}),
        on_gpu={"n_gpu_layers": "99"},
    ),
    "transformers": Sample(
        model="hf_model",
        random_model="random_hf",
        endless_model="hf_model",
        endless=_ENDLESS,
        params={},
        bad_value={"backend.max_model_len": "much"},
        misspelt=("backend.max_model_le", "backend.max_model_len"),
        smallest=900,
        light=True,
        fails_at_load={"backend.attn_implementation": "no_such_thing"},
        embedding=("hf_embedder", {}),
    ),
    "deepspeed": Sample(
        model="hf_model",
        random_model="random_hf",
        endless_model="hf_model",
        endless=_ENDLESS,
        params={},
        bad_value={"backend.max_model_len": "much"},
        misspelt=("backend.tp_siz", "backend.tp_size"),
        smallest=1100,
    ),
    "vllm": Sample(
        model="hf_model",
        random_model="random_hf",
        endless_model="hf_model",
        endless=_ENDLESS,
        params={},
        bad_value={"backend.max_model_len": "much"},
        misspelt=("backend.max_model_le", "backend.max_model_len"),
        smallest=6000,
        gpus=0.2,  # it takes all of its share at once, and there are several workers at a time
        on_gpu={"backend.dtype": "float32", "backend.enforce_eager": "true"},
    ),
}


def python_of(name: str) -> str:
    """The interpreter that has an engine; fails the test if it is not installed."""
    own = Path(FOLDER, name, "bin", "python")
    if FOLDER and own.exists():
        return str(own)
    if name == "llama_cpp" or FOLDER == "current":
        return sys.executable
    pytest.fail(f"the engine {name} is not in BYZERLLM_TEST_ENGINES={FOLDER!r}: run scripts/test")


def with_engines(byzer: Byzer, needed: str) -> Byzer:
    """The same home, where the engines of this test run are installed; fails the test if ``needed`` is not."""
    python_of(needed)
    byzer.home.mkdir(parents=True, exist_ok=True)
    (byzer.home / "engines").symlink_to(FOLDER)
    return byzer


# How a file with checks is run by an engine's interpreter, in which we are not installed.
RUN = "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_path(sys.argv.pop(1), run_name='__main__')"


def run_checks(name: str, script: str, *arguments: str | Path, seconds: float = ANSWER) -> str:
    """The last line that a file of checks beside this one writes; fails the test if it ends otherwise."""
    source = str(Path(byzerllm.__file__).parents[1])
    argv = [python_of(name), "-c", RUN, source, str(Path(__file__).with_name(script)), *map(str, arguments)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def options_of(name: str, path: Path, slots: int | None = None, kind: str = "auto", **params: str) -> EngineOptions:
    """The checked parameters of a worker."""
    if ON_GPU:
        params = {**SAMPLES[name].on_gpu, **params}
    spec = DeploymentSpec(
        name="the-instance",
        pretrained_model_type=f"custom/{kind}",
        infer_backend=name,
        model_path=str(path),
        worker_concurrency=slots,
        cpus_per_worker=1,
        gpus_per_worker=SAMPLES[name].gpus if ON_GPU else 0,
        infer_params=params,
    )
    return replace(engine(name).parse(spec), python=python_of(name))


class Running:
    """One worker of an engine, and requests to it."""

    def __init__(self, engine: Engine, options: EngineOptions, logs: Path) -> None:
        self.logs = logs
        self.runtime = LocalProcesses(logs, "127.0.0.1")
        self.token = secrets.token_hex(16)
        self.port = self.runtime.free_port()
        self.launch: Launch = engine.command(options, self.runtime.host, self.port, self.token)
        self.process: EngineProcess = asyncio.run(
            self.runtime.start("w", self.launch, port=self.port, token=self.token, devices=DEVICES)
        )

    @contextmanager
    def open(
        self, path: str, body: bytes, token: str | None = None, content_type: str = "application/json"
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER)
        key = {"Authorization": f"Bearer {self.token if token is None else token}"}
        with closing(connection):
            connection.request("POST", path, body, {"Content-Type": content_type, **key})
            with closing(connection.getresponse()) as answer:
                yield answer

    def connect(self, path: str, body: bytes) -> http.client.HTTPConnection:
        """A connection on which a request was sent and its answer was not waited for."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER)
        key = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connection.request("POST", path, body, key)
        return connection

    def post(self, path: str, body: bytes, token: str | None = None, **more: Any) -> tuple[int, bytes]:
        with self.open(path, body, token, **more) as answer:
            return answer.status, answer.read()

    def ask(self, path: str, **fields: Any) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        status, body = self.post(path, json.dumps({"model": "the-instance", **fields}).encode())
        return status, json.loads(body)

    def chat(self, **fields: Any) -> Any:
        status, answer = self.ask("/v1/chat/completions", **{**CHAT, **fields})
        assert status == 200, answer
        return answer

    def says(self, **fields: Any) -> str:
        """The content of a chat's answer."""
        content: str = self.chat(**fields)["choices"][0]["message"]["content"]
        return content

    @contextmanager
    def stream(self, **fields: Any) -> Iterator[http.client.HTTPResponse]:
        """A streamed chat whose first line has come."""
        body = json.dumps({"model": "the-instance", **CHAT, "stream": True, **fields}).encode()
        with self.open("/v1/chat/completions", body) as answer:
            assert answer.status == 200
            assert answer.peek(6).startswith(b"data: ")
            yield answer

    def chunks(self, **fields: Any) -> list[Any]:
        """The events of a whole stream."""
        with self.stream(**fields) as answer:
            lines = answer.read().decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]

    def ready(self) -> Running:
        """Waits for the request that proves readiness; fails with the engine's last words if it ends before."""

        def answers() -> bool:
            ended = self.runtime.poll(self.process)
            if ended is not None:
                pytest.fail(f"the engine ended with {ended.code}:\n{ended.tail}")
            try:
                return self.post(self.launch.ready_path, self.launch.ready_body)[0] == 200
            except ConnectionError:
                return False

        eventually(answers, START, "the engine's readiness")
        return self

    def family(self) -> list[psutil.Process]:
        """The process and its children."""
        leader = psutil.Process(self.process.pid)
        return [leader, *leader.children(recursive=True)]

    def seconds_of_work(self) -> float:
        """CPU time so far, of all its processes."""
        times = [process.cpu_times() for process in self.family()]
        return sum(time.user + time.system for time in times)

    def stop(self, grace: float = 20) -> None:
        asyncio.run(self.runtime.stop(self.process, grace=grace))


def text_of(chunks: list[Any]) -> str:
    """What a chat's stream says."""
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
