"""What llama.cpp has beside chats, each for real: rerankers, adapters, images, a draft model, tokens."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from scripts import tiny_gguf as tiny
from scripts import tiny_gguf_kinds as kinds
from tests.fakes import FakeUpstream
from tests.fixtures_models import SAY

from byzerllm.engines.llama_cpp_parameters import PARAMETERS
from byzerllm.providers.mock_media import pixel

if TYPE_CHECKING:
    from tests.harness import Byzer

LLAMA = ("--pretrained_model_type", "custom/auto", "--infer_backend", "llama_cpp", "--infer_params", "n_threads=1")
DOCUMENTS = ["the weather of today", "hello world", "one answer to the question", "city"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    kinds.write_reranker(folder / "rank.gguf")
    kinds.write_lora(folder / "lora.gguf")
    kinds.write_projector(folder / "mmproj.gguf")
    return folder


@pytest.fixture(scope="module")
def ranker(byzer: Byzer, folder: Path) -> str:
    deploy(byzer, "ranker", folder / "rank.gguf", "reranking=true")
    return "ranker"


@pytest.fixture(scope="module")
def seer(byzer: Byzer, folder: Path, tiny_gguf: Path) -> str:
    """A chat that reads images and has a draft model: itself, which always guesses right."""
    deploy(byzer, "seer", tiny_gguf, f"mmproj={folder / 'mmproj.gguf'}", f"model_draft={tiny_gguf}", "draft_max=4")
    return "seer"


def deploy(byzer: Byzer, name: str, model: Path, *params: str, code: int = 0) -> str:
    return byzer.run("deploy", "--model", name, "--model_path", model, *LLAMA, *params, code=code).stderr


def call(byzer: Byzer, path: str, model: str, status: int = 200, **fields: Any) -> Any:
    answer = byzer.http("POST", path, {"model": model, **fields})
    assert answer.status == status, answer.body
    return answer.json()


def refusal(byzer: Byzer, path: str, model: str, **fields: Any) -> str:
    return str(call(byzer, path, model, 400, **fields)["error"]["message"])


def says(byzer: Byzer, name: str) -> str:
    messages = [{"role": "user", "content": "hello"}]
    answer = call(byzer, "/v1/chat/completions", name, messages=messages, max_tokens=30, temperature=0)
    return str(answer["choices"][0]["message"]["content"])


def on_a_terminal(byzer: Byzer, *words: str) -> str:
    """What a command shows where its output is a terminal."""
    ours, its = pty.openpty()
    try:
        done = subprocess.run(byzer.argv(*words), env=byzer.env(), stdout=its, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 0, done.stderr
        return os.read(ours, 65536).decode()
    finally:
        os.close(its)
        os.close(ours)


def test_a_reranker_ranks(byzer: Byzer, ranker: str) -> None:
    found = call(byzer, "/v1/rerank", ranker, query="hello", documents=DOCUMENTS)
    scores = {row["index"]: row["relevance_score"] for row in found["results"]}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert len(set(scores.values())) == 4
    best = call(
        byzer, "/v1/rerank", ranker,
        query="hello", documents=[{"text": text} for text in DOCUMENTS], top_n=1, return_documents=True,
    )["results"]  # fmt: skip
    index = next(iter(scores))
    assert best == [{"index": index, "relevance_score": scores[index], "document": {"text": DOCUMENTS[index]}}]
    scored = call(byzer, "/v1/score", ranker, text_1="hello", text_2=DOCUMENTS)["data"]
    assert [row["score"] for row in scored] == [scores[index] for index in range(4)]
    pairs = call(byzer, "/v1/score", ranker, queries=["hello"] * 4, documents=DOCUMENTS)["data"]
    assert [row["score"] for row in pairs] == pytest.approx([scores[index] for index in range(4)], abs=1e-5)


def test_a_reranker_refuses_the_rest(byzer: Byzer, ranker: str) -> None:
    has = "ranker has no chat. It has: rerank, score, tokenize, detokenize."
    assert has in refusal(byzer, "/v1/chat/completions", ranker, messages=[])
    assert "top_n" in refusal(byzer, "/v1/rerank", ranker, query="a", documents=["b"], top_n=0)
    long = call(byzer, "/v1/rerank", ranker, 400, query="a", documents=["a " * 400])["error"]
    assert (long["code"], "256" in long["message"]) == ("context_length_exceeded", True)


def test_query_prints_the_order(byzer: Byzer, ranker: str) -> None:
    ask = ("query", "--model", ranker, "--query", "hello", "--documents", *DOCUMENTS)
    order = [row["index"] for row in json.loads(byzer.run(*ask).stdout)["results"]]
    lines = on_a_terminal(byzer, *ask).splitlines()
    assert [line.partition(". ")[0] for line in lines] == ["1", "2", "3", "4"]
    assert [line.partition("  ")[2] for line in lines] == [DOCUMENTS[index] for index in order]
    assert "Add --documents" in byzer.run("query", "--model", ranker, "--query", "x", code=2).stderr


def test_a_reranker_is_not_deployed_for_chats(byzer: Byzer, folder: Path) -> None:
    assert "Add reranking=true" in deploy(byzer, "wrong", folder / "rank.gguf", code=2)


def test_vectors_of_any_length(byzer: Byzer, tiny_gguf: Path) -> None:
    deploy(byzer, "vectors", tiny_gguf, "embedding=true")
    whole = call(byzer, "/v1/embeddings", "vectors", input=["hello world", "weather"])["data"]
    short = call(byzer, "/v1/embeddings", "vectors", input=["hello world", "weather"], dimensions=8)["data"]
    for long_row, short_row in zip(whole, short, strict=True):
        assert len(short_row["embedding"]) == 8
        assert sum(number**2 for number in short_row["embedding"]) == pytest.approx(1)
        ratio = long_row["embedding"][0] / short_row["embedding"][0]
        assert short_row["embedding"][7] * ratio == pytest.approx(long_row["embedding"][7])
    packed = call(byzer, "/v1/embeddings", "vectors", input="weather", encoding_format="base64")["data"][0]["embedding"]
    assert len(base64.b64decode(packed)) == 4 * 64
    assert "at most 64" in refusal(byzer, "/v1/embeddings", "vectors", input="a", dimensions=65)
    shown = on_a_terminal(byzer, "query", "--model", "vectors", "--query", "weather")
    assert shown.startswith("64 numbers: ")


def test_adapters_add_up_with_their_scales(byzer: Byzer, folder: Path, tiny_gguf: Path) -> None:
    lora = folder / "lora.gguf"
    for name, params, as_before in (
        ("lora", (f"lora_path={lora}",), False),
        ("off", (f"lora_path={lora}", "lora_scale=0"), True),
        ("both", (f"lora_path={lora},{lora}", "lora_scale=1,-1"), True),
    ):
        deploy(byzer, name, tiny_gguf, *params)
        assert (says(byzer, name) == SAY) is as_before, name


def test_an_image_becomes_tokens_and_no_address_is_fetched(
    byzer: Byzer, seer: str, upstream: FakeUpstream, tmp_path: Path
) -> None:
    def ask(url: str) -> dict[str, Any]:
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "hello"}]
        return {"messages": [{"role": "user", "content": content}], "temperature": 0}

    image = "data:image/png;base64," + base64.b64encode(pixel()).decode()
    seen = call(byzer, "/v1/chat/completions", seer, **ask(image))
    assert seen["choices"][0]["message"]["content"] == SAY
    plain = call(byzer, "/v1/chat/completions", seer, messages=[{"role": "user", "content": "hello"}])
    assert seen["usage"]["prompt_tokens"] >= plain["usage"]["prompt_tokens"] + 4
    assert "not fetched" in refusal(byzer, "/v1/chat/completions", seer, **ask(f"{upstream.url}/a.png"))
    assert upstream.requests == []
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(pixel())
    before = byzer.json("stat", "--model", seer, "--detail")["tokens"]["prompt"]
    files = [str(tmp_path / name) for name in ("a.png", "b.png")]
    assert byzer.run("query", "--model", seer, "--query", "hello", "--image", *files).stdout == f"{SAY}\n"
    read = byzer.json("stat", "--model", seer, "--detail")["tokens"]["prompt"] - before
    assert read >= plain["usage"]["prompt_tokens"] + 8
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    deaf = byzer.run("query", "--model", seer, "--query", "hello", "--audio", tmp_path / "a.wav", code=2)
    assert "reads no audio" in deaf.stderr


def test_a_draft_model_guesses(byzer: Byzer, seer: str) -> None:
    assert says(byzer, seer) == SAY
    guesses = re.findall(r"\( *(\d+) accepted / +(\d+) generated\)", byzer.run("logs", "--model", seer).stdout)
    assert guesses
    assert all(int(right) >= int(all_) / 2 for right, all_ in guesses)


def test_tokens(byzer: Byzer, seer: str) -> None:
    found = call(byzer, "/tokenize", seer, prompt="hello world", return_token_strs=True)
    assert (found["count"], found["max_model_len"]) == (2, 2048)
    assert found["token_strs"] == ["hello", " world"]
    assert call(byzer, "/detokenize", seer, tokens=found["tokens"]) == {"prompt": "hello world"}
    messages = [{"role": "user", "content": "hello"}]
    prompt = call(byzer, "/v1/chat/completions", seer, messages=messages)["usage"]["prompt_tokens"]
    assert call(byzer, "/tokenize", seer, messages=messages)["count"] == prompt
    assert "either 'prompt' or 'messages'" in refusal(byzer, "/tokenize", seer)
    assert byzer.http("GET", "/tokenize").status == 405


def test_a_clients_mistake_is_told_and_harms_nobody_else(byzer: Byzer, seer: str) -> None:
    hello = [{"role": "user", "content": "hello"}]
    for tools in (5, [{"type": "function"}]):
        for _ in range(4):
            error = call(byzer, "/v1/chat/completions", seer, 400, messages=hello, tools=tools)["error"]
            assert (error["type"], error["param"]) == ("invalid_request_error", "tools")
    assert "array" in refusal(byzer, "/tokenize", seer, messages=hello, tools=5)
    assert "There is no token 99999999: the model has 512" in refusal(byzer, "/detokenize", seer, tokens=[99999999])
    assert ">= 0" in refusal(byzer, "/detokenize", seer, tokens=[-1])
    stat = byzer.json("stat", "--model", seer, "--detail")
    assert stat["requests"]["retries"] == 0
    assert says(byzer, seer) == SAY


def test_a_model_without_chats_completes(byzer: Byzer, tiny_gguf: Path) -> None:
    deploy(byzer, "writer", tiny_gguf, "chat_template=none")
    assert byzer.run("query", "--model", "writer", "--query", "\n").stdout == f"{SAY}\n"
    assert "writer has no chat. It has: completion" in refusal(byzer, "/v1/chat/completions", "writer", messages=[])


def test_a_cause_stands_before_the_log(byzer: Byzer, tmp_path: Path, tiny_gguf: Path) -> None:
    model = tmp_path / "new.gguf"
    model.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"lxama"))
    assert "architecture lxama" in deploy(byzer, "new", model, code=1)


def test_a_template_from_a_file(byzer: Byzer, tmp_path: Path, tiny_gguf: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages[-1]['content'] }}\n", "utf-8")
    deploy(byzer, "templated", tiny_gguf, f"chat_template={template}")
    found = call(byzer, "/tokenize", "templated", messages=[{"role": "user", "content": "hello world"}])
    assert found["count"] in (2, 3)  # with or without the end of the line
    assert tiny.START not in json.dumps(found)


def test_the_defaults_that_the_documentation_names_are_llama_cpps() -> None:
    import xllamacpp

    ours = {"n_gpu_layers", "cache_ram", "n_ctx", "seed"}
    in_other_form = {"use_mmap", "use_mlock", "lora_scale", "reranking"}
    named = {n: p for n, p in PARAMETERS.items() if " " not in p.default and "`" not in p.default}
    for name in named.keys() - ours - in_other_form - {n for n, p in named.items() if p.default == "none"}:
        value: Any = xllamacpp.CommonParams()
        for part in named[name].attribute.split("."):
            value = getattr(value, part)
        assert named[name].read(name, named[name].default) == getattr(value, "value", value), name
