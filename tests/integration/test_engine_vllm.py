"""vLLM on CPUs, as the guide deploys it: the real command, server and engine. It starts four times, for
half a minute each: for chats, once more after it was killed, for embeddings and for ranking."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest
from scripts import tiny_hf
from scripts.tiny_gguf import Shape
from tests.engines import with_engines
from tests.harness import Byzer, eventually

import byzerllm
from byzerllm.engines import vllm_installed
from byzerllm.engines.vllm_arguments import FORMS, MAIN, our_reason

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.timeout(600)

START = 400.0  # seconds; imports alone take half a minute on a slow machine
LONG = 27_000  # tokens
WORDS = " alpha beta gamma delta"
GUIDE: tuple[str, ...] = ("--pretrained_model_type", "custom/auto", "--infer_backend", "vllm", "--num_workers", "1")
GUIDE += ("--cpus_per_worker", "0.001", "--gpus_per_worker", "0")


@pytest.fixture(scope="module")
def byzer(make_byzer: Callable[..., Byzer]) -> Byzer:
    return with_engines(make_byzer(OMP_NUM_THREADS="1"), "vllm")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says ``WORDS`` again and again, for longer than any test waits: 32,768 tokens."""
    path = tmp_path_factory.mktemp("hf") / "model"
    tiny_hf.write(path, say=WORDS, loop=True, shape=Shape(ctx=32768))
    return path


@pytest.fixture(scope="module")
def chat(byzer: Byzer, model: Path) -> str:
    """The name of a chat instance."""
    done = byzer.run(
        *("deploy", "--model", "chat", *GUIDE, "--model_path", str(model), "--worker_concurrency", "20"),
        *("--infer_params", "backend.max_model_len=28000", "backend.worker_use_ray=true"),
        timeout=START,
    )
    assert "worker 0: loading weights 1/1 shards" in done.stderr
    assert "worker 0 ready" in done.stderr
    assert "backend.worker_use_ray has no effect" in done.stderr
    return "chat"


def ask(byzer: Byzer, name: str, **fields: Any) -> Any:
    body = {"model": name, "messages": [{"role": "user", "content": "hello world"}], "max_tokens": 8, **fields}
    return byzer.http("POST", "/v1/chat/completions", body, timeout=120)


def events(answer: http.client.HTTPResponse) -> Iterator[Any]:
    """The events of a stream, which must end as OpenAI's do."""
    for line in answer:
        if line == b"data: [DONE]\n":
            return
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
    pytest.fail("the stream broke off")


@contextmanager
def stream(byzer: Byzer, name: str, **fields: Any) -> Iterator[Iterator[Any]]:
    address = urlsplit(byzer.url)
    body = {"model": name, "messages": [{"role": "user", "content": "hello"}], "stream": True, **fields}
    with closing(http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        with closing(connection.getresponse()) as answer:
            assert answer.status == 200
            yield events(answer)


def text_of(chunks: Iterable[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def leader(byzer: Byzer, name: str) -> psutil.Process:
    """The worker's own process, which the others of its group are children of."""
    return psutil.Process(byzer.json("stat", "--model", name, "--detail")["processes"][0]["pid"])


def group(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def traces(process: psutil.Process) -> set[Path]:
    """What its group has outside of its memory: shared memory by name, and its folder of sockets and other files."""
    family = group(process)
    maps = [Path(found.path) for one in family for found in one.memory_maps()]
    (tracker,) = [one for one in family if "resource_tracker" in " ".join(one.cmdline())]
    shared = {path for path in maps if path.parent == Path("/dev/shm") and path.exists()}
    return shared | {Path(tracker.environ()["TMPDIR"])}


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def from_worker(byzer: Byzer, name: str, path: str, *, token: bool = True) -> tuple[int, str]:
    """What the worker's own server says, with its private token or without."""
    process = leader(byzer, name)
    port = next(word.partition("=")[2] for word in process.cmdline() if word.startswith("--port="))
    headers = {"Authorization": f"Bearer {process.environ()['VLLM_API_KEY']}"} if token else {}
    with closing(http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def metric(byzer: Byzer, name: str) -> float:
    """The value of one of vLLM's own metrics."""
    text = from_worker(byzer, "chat", "/metrics")[1]
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"vllm:{name}{{"))


def test_a_chat_says_what_the_model_says(byzer: Byzer, chat: str) -> None:
    answer = ask(byzer, chat).json()
    assert answer["choices"][0]["message"]["content"] == WORDS * 2
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["model"] == chat
    stat = byzer.json("stat", "--model", chat)
    assert stat["worker_max_concurrency"] == 20


def test_the_tokens_of_a_stream_are_counted_whether_the_client_asks_for_them_or_not(byzer: Byzer, chat: str) -> None:
    def counted() -> int:
        stat = eventually(lambda: (found := byzer.json("stat", "--model", chat, "--detail"))["state"] == [20] and found)
        return int(stat["tokens"]["completion"])

    before = counted()
    with stream(byzer, chat, max_tokens=8) as chunks:
        unasked = list(chunks)
    assert all(chunk["choices"] for chunk in unasked)
    assert text_of(unasked) == WORDS * 2
    assert counted() == before + 8
    with stream(byzer, chat, max_tokens=8, stream_options={"include_usage": True}) as chunks:
        asked = list(chunks)
    assert asked[-1]["usage"]["completion_tokens"] == 8
    assert counted() == before + 16


def test_a_stream_comes_in_pieces_and_counts_its_tokens(byzer: Byzer, chat: str) -> None:
    with stream(byzer, chat, max_tokens=12, stream_options={"include_usage": True}) as chunks:
        told = list(chunks)
    assert text_of(told) == WORDS * 3
    assert sum(bool(text_of([chunk])) for chunk in told) > 3
    assert told[-1]["usage"]["completion_tokens"] == 12


def test_a_stop_string_ends_the_text_before_it(byzer: Byzer, chat: str) -> None:
    choice = ask(byzer, chat, stop=[" gamma"]).json()["choices"][0]
    assert choice["message"]["content"] == " alpha beta"
    assert choice["finish_reason"] == "stop"


def test_a_prompt_of_more_than_max_model_len_is_refused_with_the_number(byzer: Byzer, chat: str) -> None:
    refused = ask(byzer, chat, messages=[{"role": "user", "content": "hello " * 30000}])
    error = refused.json()["error"]
    assert (refused.status, error["code"], error["param"]) == (400, "context_length_exceeded", None)
    assert "28000" in error["message"]


def test_a_refusal_names_the_parameters_of_deploy(byzer: Byzer, chat: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    message = ask(byzer, chat, tools=[tool]).json()["error"]["message"]
    assert "backend.enable_auto_tool_choice and backend.tool_call_parser" in message
    assert "--" not in message


def test_completions_and_tokens(byzer: Byzer, chat: str) -> None:
    body = {"model": chat, "prompt": "hello world", "max_tokens": 2}
    assert byzer.http("POST", "/v1/completions", body).json()["usage"]["completion_tokens"] == 2
    counted = byzer.http("POST", "/tokenize", {"model": chat, "prompt": "hello world"}).json()
    assert counted["count"] == len(counted["tokens"]) > 0
    assert counted["max_model_len"] == 28000
    refused = byzer.http("POST", "/v1/embeddings", {"model": chat, "input": "a"})
    assert refused.status == 400
    assert "chat" in refused.json()["error"]["message"]


def test_sixteen_streams_at_a_time_are_all_whole(byzer: Byzer, chat: str) -> None:
    def one(_: int) -> str:
        with stream(byzer, chat, max_tokens=64) as chunks:
            return text_of(chunks)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(16))) == [WORDS * 16] * 16


@pytest.mark.parametrize("streamed", [True, False])
def test_generation_stops_when_the_client_goes_away(byzer: Byzer, chat: str, streamed: bool) -> None:
    before = metric(byzer, "generation_tokens_total")
    if streamed:
        with stream(byzer, chat, max_tokens=LONG) as chunks:
            next(chunks)
    else:
        with pytest.raises(TimeoutError):
            byzer.http("POST", "/v1/completions", {"model": chat, "prompt": "a", "max_tokens": LONG}, timeout=2)
    eventually(lambda: metric(byzer, "num_requests_running") == 0, 60, "the end of the request")
    assert 0 < metric(byzer, "generation_tokens_total") - before < LONG - 1000


def test_the_worker_answers_only_whom_byzerllm_sent(byzer: Byzer, chat: str) -> None:
    token = leader(byzer, chat).environ()["VLLM_API_KEY"]
    assert from_worker(byzer, chat, "/health", token=False)[0] == 200
    for path in ("/metrics", "/v1/models", "/version", "/docs"):
        assert from_worker(byzer, chat, path, token=False)[0] == 401
    assert from_worker(byzer, chat, "/v1/models")[0] == 200
    for process in group(leader(byzer, chat)):
        assert token not in " ".join(process.cmdline())
    assert token not in byzer.run("logs", "--model", chat, "--tail", "5000").stdout


def test_a_killed_server_takes_its_processes_with_it_and_is_started_again(byzer: Byzer, chat: str) -> None:
    first, left = group(leader(byzer, chat)), traces(leader(byzer, chat))
    assert len(first) >= 4  # it, its watcher, the engine and a rank
    assert len(left) >= 3  # its folder and what the engine shares with the rank
    first[0].kill()
    eventually(lambda: not alive(first), 20, "the end of the group")
    assert not [path for path in left if path.exists()]
    eventually(lambda: ask(byzer, chat).status == 200, START, "its restart")
    assert leader(byzer, chat) not in first


def test_undeploy_leaves_neither_a_process_nor_a_file(byzer: Byzer, chat: str) -> None:
    processes, left = group(leader(byzer, chat)), traces(leader(byzer, chat))
    byzer.run("undeploy", "--model", chat, timeout=90)
    eventually(lambda: not alive(processes), 20, "the end of the group")
    assert not [path for path in left if path.exists()]


@pytest.mark.parametrize("kind", ["embedding", "reranker"])
def test_a_pooling_server_answers_its_tasks_and_only_these(byzer: Byzer, tmp_path: Path, kind: str) -> None:
    tiny_hf.write_bert(tmp_path / kind, kind)
    byzer.run("deploy", "--model", kind, *GUIDE, "--model_path", tmp_path / kind, timeout=START)
    if kind == "embedding":
        answer = byzer.http("POST", "/v1/embeddings", {"model": kind, "input": ["one", "two"]}).json()
        assert [len(row["embedding"]) for row in answer["data"]] == [64, 64]
    else:
        body = {"model": kind, "query": "hello", "documents": ["one", "two", "three"], "top_n": 2}
        ranked = byzer.http("POST", "/v1/rerank", body).json()["results"]
        assert ranked[0]["relevance_score"] >= ranked[1]["relevance_score"]
        body = {"model": kind, "text_1": "hello", "text_2": ["one", "two", "three"]}
        scores = [row["score"] for row in byzer.http("POST", "/v1/score", body).json()["data"]]
        assert ranked[0]["relevance_score"] == pytest.approx(max(scores), abs=1e-4)
    assert ask(byzer, kind).status == 400
    byzer.run("undeploy", "--model", kind, timeout=90)


def test_what_cannot_start_is_refused_at_once(byzer: Byzer, model: Path, tmp_path: Path) -> None:
    def refusal(path: Path, *params: str) -> str:
        more = ("--infer_params", *params) if params else ()
        return byzer.run("deploy", "--model", "bad", *GUIDE, "--model_path", path, *more, code=2).stderr

    assert "Did you mean backend.max_model_len" in refusal(model, "backend.max_model_lenn=1")
    assert "32768 tokens" in refusal(model, "backend.max_model_len=32769")
    assert str(tmp_path) in refusal(tmp_path)
    assert byzer.json("list") == []


def test_the_table_of_arguments_is_that_of_the_installed_version(byzer: Byzer) -> None:
    python = str(byzer.home / "engines" / "vllm" / "bin" / "python")
    version, for_cpu = vllm_installed.find(python)
    assert for_cpu
    names = vllm_installed._ask(python, version)
    assert {name for name in names if our_reason(name) is None} == set(FORMS)


DEFAULTS = """
import json, sys
sys.path.append(sys.argv.pop(1))
from byzerllm.engines.host.vllm_arguments import _MAKERS, _PARSERS, _first
parser = _first(_MAKERS, "make_arg_parser")(_first(_PARSERS, "FlexibleArgumentParser")())
found = {name: parser.get_default(name) for name in sys.argv[2:]}
open(sys.argv[1], "w").write(json.dumps(found, default=str))
"""


def test_the_defaults_that_the_documentation_names_are_those_of_the_installed_version(
    byzer: Byzer, tmp_path: Path
) -> None:
    python = byzer.home / "engines" / "vllm" / "bin" / "python"
    sources = Path(byzerllm.__file__).resolve().parents[1]
    answer = tmp_path / "defaults.json"
    subprocess.run([python, "-I", "-c", DEFAULTS, sources, answer, *MAIN], check=True, timeout=START)
    for name, value in json.loads(answer.read_text("utf-8")).items():
        if value not in (None, "", {}):
            said = str(value).lower()
            assert said == MAIN[name].default or f"`{said}`" in MAIN[name].default, name
