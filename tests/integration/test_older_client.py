"""The published client of byzerllm 0.1, unchanged and in an environment of its own, against instances on Ray."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.fixtures_models import SAY
from tests.harness import eventually
from tests.older_client.cluster import INSTALL_SECONDS, OLDER, OURS, RayCluster, install

from byzerllm import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 300)

HELLO = "You said: hello"
INSTANCES = {
    "chat": [],
    "slow": ["saas.itl=0.05"],
    "person": ['saas.reply={"name": "Ada"}'],
    "vectors": ["saas.model=mock-embedding"],
    "ranks": ["saas.model=mock-rerank"],
    "locked": ["saas.demand_key=sk-other"],
    "cut": ["saas.tokens=8", "saas.cut_after=3", "saas.itl=0.05"],
    "late": ["saas.latency=1.0"],
    "gone": [],
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Iterator[RayCluster]:
    install()
    cluster = RayCluster(tmp_path_factory.mktemp("home"))
    try:
        cluster.start()
        for name, parameters in INSTANCES.items():
            given = ["--infer_params", *parameters] if parameters else []
            cluster.byzer.run(
                *("deploy", "--model", name, "--pretrained_model_type", "saas/mock", "--no_verify", *given), timeout=180
            )
        private = ("--pretrained_model_type", "custom/auto", "--infer_backend", "llama_cpp", "--model_path", tiny_gguf)
        cluster.byzer.run("deploy", "--model", "tiny", *private, timeout=180)
        yield cluster
    finally:
        cluster.stop()


def test_the_server_needs_nothing_of_the_older_package(cluster: RayCluster) -> None:
    assert cluster.byzer.run("version").stdout.strip() == __version__
    assert importable(OURS, "byzerllm", "pyjava", "byzerllm.utils") == [True, False, False]
    assert importable(OLDER, "byzerllm", "pyjava", "byzerllm.utils") == [True, True, True]


def importable(environment: Path, *modules: str) -> list[bool]:
    code = "import importlib.util as u, json, sys; print(json.dumps([bool(u.find_spec(m)) for m in sys.argv[1:]]))"
    done = subprocess.run(
        [environment / "python", "-c", code, *modules], capture_output=True, text=True, timeout=60, check=True
    )
    found: list[bool] = json.loads(done.stdout)
    return found


def test_chat(cluster: RayCluster) -> None:
    answer = cluster.call("chat", model="chat")
    assert answer["output"] == HELLO
    assert answer["input"]["instruction"] == "hello"
    assert answer["metadata"]["finish_reason"] == "stop"
    assert answer["metadata"]["input_tokens_count"] > 0
    assert answer["metadata"]["generated_tokens_count"] > 0


def test_a_chat_with_keys_of_the_callers_own_and_a_limit(cluster: RayCluster) -> None:
    answer = cluster.call("chat", model="slow", llm_config={"human_as_model": False, "max_length": 100})
    assert answer["output"] == HELLO


def test_a_private_instance(cluster: RayCluster) -> None:
    assert cluster.call("chat", model="tiny")["output"] == SAY
    assert cluster.call("stream", model="tiny", delta=False)[-1]["text"] == SAY
    meta = cluster.call("meta", model="tiny")
    assert (meta["backend"], meta["message_format"]) == ("llama_cpp", True)


def test_a_stream_of_the_text_so_far(cluster: RayCluster) -> None:
    pieces = cluster.call("stream", model="slow", delta=False)
    texts = [piece["text"] for piece in pieces]
    assert texts[-1] == HELLO
    assert len(set(texts)) > 1
    assert all(HELLO.startswith(text) for text in texts)
    assert pieces[-1]["metadata"]["generated_tokens_count"] > 0
    assert pieces[-1]["metadata"]["finish_reason"] == "stop"


def test_a_stream_of_pieces(cluster: RayCluster) -> None:
    texts = [piece["text"] for piece in cluster.call("stream", model="slow", delta=True)]
    assert "".join(texts) == HELLO
    assert len(texts) > 1


def test_an_async_stream(cluster: RayCluster) -> None:
    assert "".join(cluster.call("async_stream", model="slow")) == HELLO


def test_what_is_known_of_an_instance(cluster: RayCluster) -> None:
    meta = cluster.call("meta", model="chat")
    assert (meta["model_deploy_type"], meta["support_stream"], meta["model_name"]) == ("saas", True, "mock-chat")


def test_embeddings_of_more_texts_than_one_request_takes(cluster: RayCluster) -> None:
    vectors = cluster.call("embed", model="vectors", texts=[f"text {number}" for number in range(12)])
    assert len({tuple(vector) for vector in vectors}) == 12
    assert vectors[3] == cluster.call("embed", model="vectors", texts=["text 3"])[0]


def test_a_reranking(cluster: RayCluster) -> None:
    worse, better = ["a cat", "nothing"], ["a cat", "such a cat"]
    ranked = cluster.call("rerank", model="ranks", pairs=[worse, better])
    assert [pair for pair, _ in ranked] == [better, worse]


def test_an_answer_as_an_object(cluster: RayCluster) -> None:
    assert cluster.call("response_class", model="person") == "Ada"


def test_a_prompt_function(cluster: RayCluster) -> None:
    assert cluster.call("prompt", model="chat") == "You said: hello Bob"


def test_callbacks_before_and_after_the_call(cluster: RayCluster) -> None:
    seen = cluster.call("callbacks", model="chat")
    assert seen["moments"] == ["before hello", f"after {HELLO}"]
    assert seen["tokens"] > 0


@pytest.mark.parametrize("streamed", [False, True])
def test_a_refused_key_is_a_message_and_no_unpickling_error(cluster: RayCluster, streamed: bool) -> None:
    error = cluster.call("error", model="locked", streamed=streamed)
    assert error["kind"] == "RayTaskError(RuntimeError)"
    assert error["text"].splitlines()[-1] == (
        "RuntimeError: 401 invalid_api_key: Incorrect API key provided to the mock upstream."
    )


def test_a_stream_that_breaks_off_ends_with_an_error(cluster: RayCluster) -> None:
    error = cluster.call("error", model="cut", streamed=True)
    assert error["pieces"]
    assert "502 upstream_broken" in error["text"].splitlines()[-1]


def test_the_servers_limits_hold_for_older_clients(cluster: RayCluster) -> None:
    done = cluster.call("threads", model="late", count=3)  # one slot
    assert done["outputs"] == [HELLO] * 3
    assert done["seconds"] > 2.9
    assert cluster.byzer.json("stat", "--model", "late")["state"] == [1]


def test_the_older_command_line(cluster: RayCluster) -> None:
    assert cluster.older("query", "--model", "chat", "--query", "hello").splitlines()[-1] == HELLO
    assert '"total_workers": 1' in cluster.older("stat", "--model", "chat")


def test_the_older_undeploy_undeploys(cluster: RayCluster) -> None:
    assert "undeployed successfully" in cluster.older("undeploy", "--model", "gone")
    eventually(lambda: "gone" not in [d["name"] for d in cluster.byzer.json("list")], timeout=60)
    cluster.byzer.run("deploy", "--model", "gone", "--pretrained_model_type", "saas/mock", timeout=180)
    assert cluster.call("chat", model="gone")["output"] == HELLO
