"""What every engine promises, with a real model, a real process and real tokens."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import os
import secrets
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.fixtures_models import SAY
from tests.harness import eventually

from byzerllm.engines import engine, names
from byzerllm.errors import InvalidInput
from byzerllm.runtime.local import LocalProcesses
from byzerllm.spec import DeploymentSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from byzerllm.engines.base import Engine, EngineOptions, Launch
    from byzerllm.runtime.base import EngineProcess


@dataclass(frozen=True)
class Sample:
    """What the tests must know of one engine: its module, its models (by fixture), and some parameters."""

    module: str
    model: str
    endless_model: str
    params: dict[str, str]
    embedding: dict[str, str]
    bad_value: dict[str, str]
    misspelt: tuple[str, str]
    fails_at_load: dict[str, str] = field(default_factory=dict)


SAMPLES = {
    "llama_cpp": Sample(
        module="xllamacpp",
        model="tiny_gguf",
        endless_model="loop_gguf",
        params={"n_threads": "1"},
        embedding={"embedding": "true"},
        bad_value={"n_ctx": "much"},
        misspelt=("n_gpu_layer", "n_gpu_layers"),
        fails_at_load={"chat_template": "{% no_such_thing %}"},
    )
}
INSTALLED = [name for name in names() if importlib.util.find_spec(SAMPLES[name].module)]
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 64}


class Running:
    """One worker of an engine, and requests to it."""

    def __init__(self, engine: Engine, options: EngineOptions, logs: Path) -> None:
        self.runtime = LocalProcesses(logs, "127.0.0.1")
        self.token = secrets.token_hex(16)
        self.port = self.runtime.free_port()
        self.launch: Launch = engine.command(options, self.runtime.host, self.port, self.token)
        self.process: EngineProcess = asyncio.run(
            self.runtime.start("w", self.launch, port=self.port, token=self.token, devices="")
        )

    @contextmanager
    def open(self, path: str, body: bytes, token: str | None = None) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=40)
        key = {"Authorization": f"Bearer {self.token if token is None else token}"}
        with closing(connection):
            connection.request("POST", path, body, {"Content-Type": "application/json", **key})
            with closing(connection.getresponse()) as answer:
                yield answer

    def post(self, path: str, body: bytes, token: str | None = None) -> tuple[int, bytes]:
        with self.open(path, body, token) as answer:
            return answer.status, answer.read()

    def chat(self, **fields: Any) -> Any:
        status, body = self.post("/v1/chat/completions", json.dumps({**CHAT, **fields}).encode())
        assert status == 200
        return json.loads(body)

    @contextmanager
    def stream(self, **fields: Any) -> Iterator[http.client.HTTPResponse]:
        """A streamed chat whose first line was read."""
        body = json.dumps({**CHAT, "stream": True, **fields}).encode()
        with self.open("/v1/chat/completions", body) as answer:
            assert answer.status == 200
            assert answer.peek(6).startswith(b"data: ")
            yield answer

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

        eventually(answers, 50, "the engine's readiness")
        return self

    def stop(self, grace: float = 20) -> None:
        asyncio.run(self.runtime.stop(self.process, grace=grace))


@pytest.fixture(scope="module", params=INSTALLED)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def model(name: str, request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(SAMPLES[name].model)
    return path


@pytest.fixture(scope="module")
def parse(name: str, model: Path) -> Callable[..., EngineOptions]:
    def parse(path: Path = model, slots: int | None = None, **params: str) -> EngineOptions:
        return engine(name).parse(
            DeploymentSpec(
                name="the-instance",
                pretrained_model_type="custom/auto",
                infer_backend=name,
                model_path=str(path),
                worker_concurrency=slots,
                infer_params={**SAMPLES[name].params, **params},
            )
        )

    return parse


@pytest.fixture(scope="module")
def run(
    name: str, parse: Callable[..., EngineOptions], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Running]]:
    """Starts workers; all that were started end with the module."""
    started: list[Running] = []

    def run(**given: Any) -> Running:
        started.append(Running(engine(name), parse(**given), tmp_path_factory.mktemp("logs")))
        return started[-1]

    yield run
    for running in started:
        running.stop(grace=0)


@pytest.fixture(scope="module")
def worker(run: Callable[..., Running]) -> Running:
    return run(slots=2).ready()


def test_an_unknown_parameter_is_refused_with_the_nearest(name: str, parse: Callable[..., EngineOptions]) -> None:
    wrong, right = SAMPLES[name].misspelt
    with pytest.raises(InvalidInput, match=f"{wrong}.*Did you mean {right}"):
        parse(**{wrong: "1"})


def test_a_value_of_the_wrong_kind_is_refused(name: str, parse: Callable[..., EngineOptions]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(SAMPLES[name].bad_value))):
        parse(**SAMPLES[name].bad_value)


def test_slots_are_the_concurrency_or_the_engines_own(parse: Callable[..., EngineOptions]) -> None:
    assert parse().slots >= 1
    assert parse(slots=3).slots == 3


def test_a_whole_model_passes_as_file_and_in_a_folder(
    name: str, model: Path, parse: Callable[..., EngineOptions], tmp_path: Path
) -> None:
    engine(name).check(parse())
    (tmp_path / model.name).symlink_to(model)
    engine(name).check(parse(path=tmp_path))


@pytest.mark.parametrize("cut", [0, 10, 5000, -1])
def test_a_model_cut_short_is_refused(
    name: str, model: Path, parse: Callable[..., EngineOptions], tmp_path: Path, cut: int
) -> None:
    part = tmp_path / model.name
    part.write_bytes(model.read_bytes()[:cut])
    with pytest.raises(InvalidInput, match=str(part)):
        engine(name).check(parse(path=part))


def test_what_is_not_there_or_no_model_is_refused(
    name: str, parse: Callable[..., EngineOptions], tmp_path: Path
) -> None:
    for path in (tmp_path / "nothing", tmp_path, Path(__file__)):
        with pytest.raises(InvalidInput, match=str(path)):
            engine(name).check(parse(path=path))


def test_chat_says_what_the_model_says(worker: Running) -> None:
    answer = worker.chat()
    assert answer["choices"][0]["message"]["content"] == SAY
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 17
    assert answer["model"] == "the-instance"


def test_a_stream_says_the_same_in_pieces(worker: Running) -> None:
    with worker.stream(stream_options={"include_usage": True}) as answer:
        lines = answer.read().decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    texts = [c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]]
    assert "".join(texts) == SAY
    assert len([text for text in texts if text]) > 5
    assert chunks[-1]["usage"]["completion_tokens"] == 17


def test_max_tokens_is_kept(worker: Running) -> None:
    choice = worker.chat(max_tokens=3)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert SAY.startswith(choice["message"]["content"])


@pytest.mark.parametrize("token", ["", "wrong"])
def test_only_its_token_is_accepted(worker: Running, token: str) -> None:
    assert worker.post("/v1/chat/completions", json.dumps(CHAT).encode(), token)[0] == 401


def test_the_token_is_not_to_be_seen(worker: Running) -> None:
    assert worker.token not in " ".join(psutil.Process(worker.process.pid).cmdline())
    assert worker.token not in Path(worker.process.log).read_text("utf-8")


def test_the_port_is_open_on_this_machine_only(worker: Running) -> None:
    listening = [c for c in psutil.Process(worker.process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [(c.laddr.ip, c.laddr.port) for c in listening] == [("127.0.0.1", worker.port)]


def test_an_abandoned_stream_frees_its_slot_and_an_open_one_does_not_hold_up_the_end(
    name: str, run: Callable[..., Running], request: pytest.FixtureRequest
) -> None:
    worker = run(path=request.getfixturevalue(SAMPLES[name].endless_model), slots=1).ready()
    with worker.stream(max_tokens=-1):
        pass
    assert worker.chat(max_tokens=2)["usage"]["completion_tokens"] == 2
    with worker.stream(max_tokens=-1):
        worker.stop()
    ended = worker.runtime.poll(worker.process)
    assert ended is not None
    assert ended.code == 0  # by itself, not because its time was up
    assert not psutil.pid_exists(worker.process.pid)


def test_as_many_requests_as_slots_are_answered_at_a_time(
    name: str, run: Callable[..., Running], request: pytest.FixtureRequest
) -> None:
    worker = run(path=request.getfixturevalue(SAMPLES[name].endless_model), slots=2).ready()
    with worker.stream(max_tokens=-1) as endless:
        assert worker.chat(max_tokens=2)["usage"]["completion_tokens"] == 2
        assert endless.read(2000).count(b"data: ") > 2  # and it goes on
    worker.stop()


def test_an_embedding_worker_embeds(name: str, run: Callable[..., Running]) -> None:
    worker = run(**SAMPLES[name].embedding).ready()
    body = json.dumps({"input": ["hello world", "weather"]}).encode()
    answer = json.loads(worker.post("/v1/embeddings", body)[1])
    vectors = [row["embedding"] for row in answer["data"]]
    assert [len(vector) for vector in vectors] == [64, 64]
    assert vectors[0] != vectors[1]
    worker.stop()


def test_a_load_that_fails_ends_with_the_cause(name: str, run: Callable[..., Running], model: Path) -> None:
    worker = run(**SAMPLES[name].fails_at_load)
    ended = eventually(lambda: worker.runtime.poll(worker.process), 50, "the end of the engine")
    assert ended is not None
    assert ended.code == 1
    assert str(model) in ended.tail.splitlines()[-1]
    assert "no_such_thing" in ended.tail


def test_a_worker_is_small_and_leads_its_own_session(worker: Running) -> None:
    # The engine, its libraries and the tiny model: what byzerllm adds must stay a fraction of an engine's size.
    assert psutil.Process(worker.process.pid).memory_info().rss < 120 * 2**20
    assert os.getsid(worker.process.pid) == worker.process.pid
