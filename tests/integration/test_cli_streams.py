"""The commands that stream, against a scripted server: query, logs and serve."""

from __future__ import annotations

import base64
import os
import signal
from typing import TYPE_CHECKING

import pytest
from tests.fakes import HANG, RESET, Reply, json_reply, sse_reply
from tests.harness import Byzer, eventually
from tests.integration.scripted_server import ScriptedServer, body, delta, ndjson, on_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = {"id": "m", "object": "model", "task": "chat"}


@pytest.fixture
def server(fresh_byzer: Byzer) -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    with server:
        server.announce(fresh_byzer.home)
        server.answers["GET /v1/models/m"] = json_reply(MODEL)
        yield server


@pytest.fixture
def byzer(fresh_byzer: Byzer, server: ScriptedServer) -> Byzer:
    return fresh_byzer


# query


def test_query_prints_the_pieces_and_sends_only_what_was_said(byzer: Byzer, server: ScriptedServer) -> None:
    server.answers["POST /v1/chat/completions"] = sse_reply(delta("Hel"), delta("lo 你好"), delta(finish="stop"))
    done = byzer.run("query", "--model", "m", "--query", "hi", "--system", "be nice")
    assert (done.stdout, body(done)) == ("Hello 你好\n", "")
    assert server.asked("POST")[0].json() == {
        "model": "m",
        "messages": [{"role": "system", "content": "be nice"}, {"role": "user", "content": "hi"}],
        "stream": True,
    }


def test_query_shows_a_piece_before_the_next_arrives(byzer: Byzer, server: ScriptedServer) -> None:
    server.answers["POST /v1/chat/completions"] = sse_reply(delta("first"), done=False, then=[HANG])
    with byzer.background("query", "--model", "m", "--query", "hi") as process:
        assert process.stdout
        assert os.read(process.stdout.fileno(), 100) == b"first"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    server.asked("POST")[0].wait_cancelled()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (sse_reply(delta("ab"), done=False), "The answer broke off before its end."),
        (sse_reply(delta("ab"), {"error": {"message": "vendor died", "code": "x"}}, done=False), "error: vendor died"),
        (sse_reply(delta("ab"), done=False, then=[RESET]), "broke off"),
    ],
)
def test_a_stream_that_fails_is_a_failure(byzer: Byzer, server: ScriptedServer, reply: Reply, said: str) -> None:
    server.answers["POST /v1/chat/completions"] = reply
    done = byzer.run("query", "--model", "m", "--query", "hi", code=1)
    assert done.stdout == "ab\n"
    assert said in body(done)


def test_a_finish_reason_is_an_end_as_good_as_done(byzer: Byzer, server: ScriptedServer) -> None:
    server.answers["POST /v1/chat/completions"] = sse_reply(delta("ab", "stop"), done=False)
    assert byzer.run("query", "--model", "m", "--query", "hi").stdout == "ab\n"


def test_a_vendors_error_is_not_taken_for_a_stale_server(byzer: Byzer, server: ScriptedServer) -> None:
    error = {"message": "Incorrect API key provided", "code": "invalid_api_key"}
    server.answers["POST /v1/chat/completions"] = json_reply({"error": error}, 401)
    done = byzer.run("query", "--model", "m", "--query", "hi", code=1)
    assert body(done) == "byzerllm: error: Incorrect API key provided\n"


def test_reasoning_is_shown_beside_the_answer_on_a_terminal_only(byzer: Byzer, server: ScriptedServer) -> None:
    server.answers["POST /v1/chat/completions"] = sse_reply(delta(reasoning_content="hmm"), delta("42", "stop"))
    done = byzer.run("query", "--model", "m", "--query", "hi")
    assert (done.stdout, body(done)) == ("42\n", "")
    assert "\x1b[2mhmm\x1b[0m" in on_terminal(byzer, "query", "--model", "m", "--query", "hi")


def test_query_without_streaming(byzer: Byzer, server: ScriptedServer) -> None:
    answer = {"choices": [{"message": {"role": "assistant", "content": "whole"}, "finish_reason": "stop"}]}
    server.answers["POST /v1/chat/completions"] = json_reply(answer)
    done = byzer.run("query", "--model", "m", "--query", "hi", "--no_stream", "--template", "llama")
    assert done.stdout == "whole\n"
    assert body(done) == "--template has no effect: the model's own template is used.\n"
    assert "stream" not in server.asked("POST")[0].json()


def test_query_writes_a_file(byzer: Byzer, server: ScriptedServer, tmp_path: Path) -> None:
    sound = bytes(range(256))
    text = base64.b64encode(sound).decode()
    server.answers["POST /v1/chat/completions"] = sse_reply(delta(text[:9]), delta(text[9:], "stop"))
    ask = ("query", "--model", "m", "--query", "hi", "--output_file")
    for name, content in (("a.txt", text.encode()), ("a.mp3", sound), ("a.WAV", sound)):
        assert byzer.run(*ask, tmp_path / name).stdout == ""
        assert (tmp_path / name).read_bytes() == content
    server.answers["POST /v1/chat/completions"] = sse_reply(delta("I cannot speak", "stop"))
    assert "not in base64" in byzer.run(*ask, tmp_path / "b.mp3", code=1).stderr
    assert not (tmp_path / "b.mp3").exists()


def test_an_output_file_that_cannot_be_is_refused_before_anything_is_asked(
    byzer: Byzer, server: ScriptedServer
) -> None:
    for name in ("/no/folder/a.txt", "/"):
        byzer.run("query", "--model", "m", "--query", "hi", "--output_file", name, code=2)
    assert server.requests == []


def test_an_embedding_is_json_when_piped_and_its_start_on_a_terminal(byzer: Byzer, server: ScriptedServer) -> None:
    answer = {"object": "list", "data": [{"embedding": [0.125 * n for n in range(9)]}], "model": "m"}
    server.answers["GET /v1/models/m"] = json_reply({**MODEL, "task": "embedding"})
    server.answers["POST /v1/embeddings"] = json_reply(answer)
    assert byzer.json("query", "--model", "m", "--query", "hi") == answer
    assert server.asked("POST")[0].json() == {"model": "m", "input": "hi"}
    assert "9 numbers: 0, 0.125, 0.25, 0.375, 0.5, 0.625, ..." in on_terminal(
        byzer, "query", "--model", "m", "--query", "hi"
    )


# logs, serve


def test_logs_follows_until_interrupted(byzer: Byzer, server: ScriptedServer) -> None:
    server.answers["GET /admin/deployments/m/logs"] = Reply([b"one\n", 0.05, b"\xfftwo\n", HANG], framing="chunked")
    with byzer.background("logs", "--model", "m", "-f", "--tail", "5", "--worker", "1") as process:
        assert process.stdout
        got = b""
        while not got.endswith(b"two\n"):
            got += os.read(process.stdout.fileno(), 100)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert got == b"one\n\xfftwo\n"
    assert server.requests[0].path.endswith("?tail=5&follow=1&worker=1")


def test_serve_prints_the_address_and_closes_when_interrupted(byzer: Byzer, server: ScriptedServer) -> None:
    listening = {"event": "listening", "url": "http://0.0.0.0:8000"}
    server.answers["POST /admin/listeners"] = ndjson(listening, then=[HANG])
    command = ("serve", "--host", "0.0.0.0", "--api_key", "env:SERVE_KEY", "--client", "lite")
    with byzer.background(*command, env={"SERVE_KEY": "sk-12345"}) as process:
        assert process.stdout
        assert process.stdout.readline() == "http://0.0.0.0:8000\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "--client has no effect any more.\n" in errors
    assert "sk-12345" not in errors
    [request] = server.asked("POST")
    request.wait_cancelled()
    sent = request.json()
    assert (sent["api_key"], sent["port"], sent["allowed_origins"]) == ("sk-12345", 8000, ["*"])


def test_serve_opens_again_when_the_server_is_back(byzer: Byzer, server: ScriptedServer) -> None:
    listening = {"event": "listening", "url": "http://127.0.0.1:8000"}
    server.answers["POST /admin/listeners"] = ndjson(listening, then=[RESET])
    with byzer.background("serve") as process:
        eventually(lambda: len(server.asked("POST")) >= 3)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=10)
    assert output.count("http://127.0.0.1:8000\n") >= 3
    assert "waiting for it to come back" in errors


def test_serve_reports_why_it_cannot_listen(byzer: Byzer, server: ScriptedServer) -> None:
    error = {"message": "Port 8000 is taken.", "code": "invalid_request", "hint": "Give another --port."}
    server.answers["POST /admin/listeners"] = json_reply({"error": error}, 400)
    done = byzer.run("serve", code=2)
    assert body(done) == "byzerllm: error: Port 8000 is taken.\n  Give another --port.\n"
