"""What every engine promises, with the same tiny models, real processes and real tokens."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.engines import ON_GPU, SAMPLES, START, Running, Sample, options_of, text_of
from tests.fixtures_models import RANDOM_PROMPT, RANDOM_SAYS, RANDOM_TOKENS, SAY
from tests.harness import eventually

from byzerllm.engines import engine
from byzerllm.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from byzerllm.engines.base import EngineOptions

CUDA_LIBRARIES = 4000  # MiB that they take in a process at most

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", params=SAMPLES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def sample(name: str) -> Sample:
    return SAMPLES[name]


@pytest.fixture(scope="module")
def model(sample: Sample, request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(sample.model)
    return path


@pytest.fixture(scope="module")
def parse(name: str, sample: Sample, model: Path) -> Callable[..., EngineOptions]:
    def parse(path: Path = model, slots: int | None = None, **params: str) -> EngineOptions:
        return options_of(name, path, slots, **{**sample.params, **params})

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
    return run(slots=16).ready()


@pytest.fixture(scope="module")
def endless(sample: Sample, worker: Running, run: Callable[..., Running], request: pytest.FixtureRequest) -> Running:
    """A worker whose model can speak without an end: the other one, where its model can."""
    if sample.endless_model == sample.model:
        return worker
    return run(path=request.getfixturevalue(sample.endless_model), slots=2).ready()


# Parameters and files


def test_an_unknown_parameter_is_refused_with_the_nearest(
    name: str, sample: Sample, parse: Callable[..., EngineOptions]
) -> None:
    wrong, right = sample.misspelt
    with pytest.raises(InvalidInput, match=f"{wrong}.*Did you mean {right}"):
        engine(name).check(parse(**{wrong: "1"}))


def test_a_value_of_the_wrong_kind_is_refused(sample: Sample, parse: Callable[..., EngineOptions]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(sample.bad_value))):
        parse(**sample.bad_value)


def test_slots_are_the_concurrency_or_the_engines_own(parse: Callable[..., EngineOptions]) -> None:
    assert parse().slots >= 1
    assert parse(slots=3).slots == 3


def test_a_whole_model_passes_and_tells_what_it_needs(name: str, parse: Callable[..., EngineOptions]) -> None:
    needs = engine(name).check(parse())
    assert needs is not None
    assert needs.weights > 600_000
    assert needs.on_gpu is ON_GPU


def test_a_model_cut_short_is_refused(
    name: str, model: Path, parse: Callable[..., EngineOptions], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in [model] if model.is_file() else model.iterdir():
        data = file.read_bytes()
        (folder / file.name).write_bytes(data[:-1] if file.suffix in (".gguf", ".safetensors") else data)
    with pytest.raises(InvalidInput, match=str(folder)):
        engine(name).check(parse(path=folder))


def test_what_is_not_there_or_no_model_is_refused(
    name: str, parse: Callable[..., EngineOptions], tmp_path: Path
) -> None:
    for path in (tmp_path / "nothing", tmp_path, Path(__file__)):
        with pytest.raises(InvalidInput, match=str(path)):
            engine(name).check(parse(path=path))


def test_a_chat_template_that_is_none_ends_the_start(name: str, run: Callable[..., Running], tmp_path: Path) -> None:
    template = tmp_path / "bad.jinja"
    template.write_text("{{ bad")
    worker = run(**{"chat_template" if name == "llama_cpp" else "backend.chat_template": str(template)})
    ended = eventually(lambda: worker.runtime.poll(worker.process), START)
    assert ended
    assert ended.code == 1
    assert "chat_template cannot be read as a Jinja template" in str(engine(name).cause(ended.tail))


# Answers


def test_chat_says_what_the_model_says(worker: Running) -> None:
    answer = worker.chat()
    assert answer["choices"][0]["message"]["content"] == SAY
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 17
    assert answer["model"] == "the-instance"


def test_a_stream_says_the_same_in_pieces(worker: Running) -> None:
    chunks = worker.chunks(stream_options={"include_usage": True})
    assert text_of(chunks) == SAY
    assert len([c for c in chunks if c["choices"] and c["choices"][0]["delta"].get("content")]) > 5
    assert chunks[-1]["usage"]["completion_tokens"] == 17


def test_a_completion_goes_on_from_its_prompt(worker: Running) -> None:
    # What it says hangs on the last token only: after the line feed of the chat template its text begins.
    status, answer = worker.ask("/v1/completions", prompt="hello\n", max_tokens=64)
    assert status == 200
    assert answer["choices"][0]["text"] == SAY


def test_random_weights_say_the_same_in_every_engine(
    run: Callable[..., Running], sample: Sample, request: pytest.FixtureRequest
) -> None:
    worker = run(path=request.getfixturevalue(sample.random_model), slots=2).ready()
    status, answer = worker.ask("/v1/completions", prompt=RANDOM_PROMPT, max_tokens=RANDOM_TOKENS, temperature=0)
    assert status == 200
    assert answer["choices"][0]["text"] == RANDOM_SAYS
    fields = {"prompt": RANDOM_PROMPT, "max_tokens": RANDOM_TOKENS, "temperature": 1.0}
    texts = [worker.ask("/v1/completions", **fields, seed=seed)[1]["choices"][0]["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    worker.stop()


def test_max_tokens_is_kept(worker: Running) -> None:
    choice = worker.chat(max_tokens=3)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert SAY.startswith(choice["message"]["content"])


@pytest.mark.parametrize("stop", ["fixed", " with one", ["nothing", "always answers"]])
def test_a_stop_string_ends_the_answer_before_it(worker: Running, stop: Any) -> None:
    before = min((SAY.partition(one)[0] for one in ([stop] if isinstance(stop, str) else stop)), key=len)
    answer = worker.chat(stop=stop)
    assert answer["choices"][0]["message"]["content"] == before
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert text_of(worker.chunks(stop=stop)) == before


def test_sixteen_streams_at_a_time_are_all_whole(worker: Running) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: worker.chunks(), range(16)))
    assert [text_of(chunks) for chunks in answers] == [SAY] * 16
    ends = [[c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] for chunks in answers]
    assert ends == ["stop"] * 16


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(worker: Running) -> None:
    message = {"role": "user", "content": "hello world " * 20_000}
    status, answer = worker.ask("/v1/chat/completions", messages=[message], max_tokens=1)
    assert status == 400
    assert any(word.strip(".,()").isdigit() for word in str(answer["error"]["message"]).split())


@pytest.mark.parametrize("fields", [{"temperature": "hot"}, {"messages": "hello"}, {"max_tokens": "many"}])
def test_a_wrong_field_is_refused(worker: Running, fields: dict[str, Any]) -> None:
    status, answer = worker.ask("/v1/chat/completions", **{"messages": [{"role": "user", "content": "a"}], **fields})
    assert 400 <= status < 500
    assert answer["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_what_is_no_json_is_refused(worker: Running, body: bytes) -> None:
    assert 400 <= worker.post("/v1/chat/completions", body)[0] < 500
    assert worker.says() == SAY


# Privacy and size


@pytest.mark.parametrize("token", ["", "wrong"])
def test_only_its_token_is_accepted(worker: Running, token: str) -> None:
    assert worker.post("/v1/chat/completions", b"{}", token)[0] == 401


def test_the_token_is_not_to_be_seen(worker: Running) -> None:
    assert not any(worker.token in " ".join(process.cmdline()) for process in worker.family())
    assert worker.token not in Path(worker.process.log).read_text("utf-8")


def test_the_port_is_open_on_this_machine_only(worker: Running) -> None:
    listening = [
        connection.laddr
        for process in worker.family()
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert worker.port in [address.port for address in listening]
    assert all(address.ip in ("127.0.0.1", "::1") for address in listening)


def test_a_worker_is_small_and_leads_its_own_session(worker: Running, sample: Sample) -> None:
    # The engine, its libraries and the tiny model: what byzerllm adds must stay a fraction of an engine's size.
    most = sample.smallest + (CUDA_LIBRARIES if ON_GPU else 0)
    assert sum(process.memory_info().rss for process in worker.family()) < most * 2**20
    assert os.getsid(worker.process.pid) == worker.process.pid


# The end of things


def quiet(worker: Running) -> bool:
    """Whether it computes nothing for half a second."""
    before = worker.seconds_of_work()
    time.sleep(0.5)
    return worker.seconds_of_work() - before < 0.15


def test_generation_stops_when_the_reader_of_a_stream_goes_away(endless: Running, sample: Sample) -> None:
    with endless.stream(**sample.endless):
        eventually(lambda: not quiet(endless), 30, "its work")
    eventually(lambda: quiet(endless), 30, "the end of its work")


def test_generation_stops_when_nobody_waits_for_a_whole_answer(endless: Running, sample: Sample) -> None:
    body = json.dumps({"model": "the-instance", "messages": [{"role": "user", "content": "hello"}], **sample.endless})
    connection = endless.connect("/v1/chat/completions", body.encode())
    eventually(lambda: not quiet(endless), 30, "its work")
    connection.close()
    eventually(lambda: quiet(endless), 30, "the end of its work")


def test_others_are_answered_beside_an_endless_stream(endless: Running, sample: Sample) -> None:
    with endless.stream(**sample.endless) as answer:
        assert endless.chat(max_tokens=2)["usage"]["completion_tokens"] == 2
        assert answer.read(2000).count(b"data: ") > 2  # and it goes on


def test_an_open_stream_does_not_hold_up_the_end(name: str, endless: Running, sample: Sample) -> None:
    family = endless.family()
    with endless.stream(**sample.endless):
        endless.stop()
    ended = endless.runtime.poll(endless.process)
    assert ended is not None
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


@pytest.mark.parametrize("name", [n for n in SAMPLES if SAMPLES[n].light], indirect=True)
def test_an_engine_that_is_killed_leaves_no_process(run: Callable[..., Running]) -> None:
    worker = run().ready()
    family = worker.family()
    family[0].kill()
    eventually(lambda: worker.runtime.poll(worker.process) is not None, 20, "its end to be seen")
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


@pytest.mark.parametrize("name", [n for n in SAMPLES if SAMPLES[n].embedding], indirect=True)
def test_an_embedding_worker_embeds(
    sample: Sample, run: Callable[..., Running], request: pytest.FixtureRequest
) -> None:
    assert sample.embedding is not None
    fixture, params = sample.embedding
    worker = run(path=request.getfixturevalue(fixture), **params).ready()
    status, answer = worker.ask("/v1/embeddings", input=["hello world", "weather"])
    assert status == 200
    vectors = [row["embedding"] for row in answer["data"]]
    assert [len(vector) for vector in vectors] == [64, 64]
    assert vectors[0] != vectors[1]
    worker.stop()


@pytest.mark.parametrize("name", [n for n in SAMPLES if SAMPLES[n].fails_at_load], indirect=True)
def test_a_load_that_fails_ends_with_the_cause(sample: Sample, run: Callable[..., Running], model: Path) -> None:
    worker = run(**sample.fails_at_load)
    ended = eventually(lambda: worker.runtime.poll(worker.process), START, "the end of the engine")
    assert ended is not None
    assert ended
    assert ended.code == 1
    assert str(model) in ended.tail.splitlines()[-1]
    assert "no_such_thing" in ended.tail
