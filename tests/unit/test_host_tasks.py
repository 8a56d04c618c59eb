"""What the host answers beside text: vectors, scores, sound, images, tokens; and who may ask."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import wave
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.hosted import NOW, Host, Speller

from byzerllm.engines.host.app import ROUTES
from byzerllm.engines.host.backend import Job, Picture, Recording, Scores, Segment, Sound, Token, Transcript, Vectors

WORDS = [{"word": "a", "start": 0.25, "end": 1.5}]


class Embedder:
    context, characters = 20, 100

    async def embed(self, texts: list[str] | list[list[int]], dimensions: int | None) -> Vectors:
        return Vectors([[float(len(text)), 0.5][:dimensions] for text in texts], sum(map(len, texts)))


class Reranker:
    context, characters = 20, 100

    async def score(self, pairs: list[tuple[str, str]]) -> Scores:
        return Scores([len(second) / 10 - len(first) for first, second in pairs], 7)


@dataclass
class Transcriber:
    got: list[Recording] = field(default_factory=list)

    async def transcribe(self, recording: Recording) -> Transcript:
        self.got.append(recording)
        segments = [Segment(0.0, 1.5, " a"), Segment(3661.25, 3662.0, " b")]
        return Transcript("a b", segments, "en", 2.5, [Segment(0.25, 1.5, " a")])


class Speaker:
    async def speak(self, text: str, voice: str | None, speed: float) -> Sound:
        return Sound(struct.pack("<3f", 0.0, 1.0, -2.0), 16000)


@dataclass
class Painter:
    got: list[Picture] = field(default_factory=list)

    async def paint(self, picture: Picture) -> list[bytes]:
        self.got.append(picture)
        return [b"png"] * picture.count


def form(**fields: str | bytes) -> tuple[bytes, str]:
    """A multipart body and its content type; bytes are files."""
    parts = b""
    for name, value in fields.items():
        file = b'; filename="f"' if isinstance(value, bytes) else b""
        data = value if isinstance(value, bytes) else value.encode()
        parts += b'--XyZ\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name.encode(), file, data)
    return parts + b"--XyZ--\r\n", "multipart/form-data; boundary=XyZ"


def transcribe(hears: Transcriber, /, **fields: str | bytes) -> Any:
    body, content_type = form(**fields)
    return Host(hears, "transcription").post("/v1/audio/transcriptions", body, content_type=content_type)


def test_embeddings_come_in_the_order_of_the_inputs() -> None:
    answer = Host(Embedder(), "embedding").post("/v1/embeddings", {"input": ["ab", "c"]}).json()
    assert answer == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [2.0, 0.5]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 0.5]},
        ],
        "model": "the-model",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


def test_embeddings_can_be_base64_and_shorter() -> None:
    body = {"input": [[1, 2, 3]], "encoding_format": "base64", "dimensions": 1}
    data = Host(Embedder(), "embedding").post("/v1/embeddings", body).json()["data"]
    assert struct.unpack("<1f", base64.b64decode(data[0]["embedding"])) == (3.0,)


@pytest.mark.parametrize(
    "value", [None, "", [], [""], [1, "a"], {"a": 1}, [[]], ["a", ["b"]], [True], [[1, False]], [[1], "a"]]
)
def test_an_input_of_the_wrong_kind_is_refused(value: Any) -> None:
    reply = Host(Embedder(), "embedding").post("/v1/embeddings", {"input": value})
    assert reply.status == 400
    assert reply.error["param"] == "input"


def test_documents_are_ranked_the_best_first() -> None:
    body = {"query": "q", "documents": ["a", {"text": "abc"}, "ab"], "top_n": 2}
    answer = Host(Reranker(), "reranker").post("/v1/rerank", body).json()
    assert [(row["index"], row["document"]["text"]) for row in answer["results"]] == [(1, "abc"), (2, "ab")]
    assert answer["usage"]["total_tokens"] == 7
    plain = Host(Reranker(), "reranker").post("/v1/rerank", {**body, "return_documents": False}).json()
    assert "document" not in plain["results"][0]


@pytest.mark.parametrize("fields", [{"query": "q"}, {"documents": ["a"]}, {"query": "q", "documents": [1]}])
def test_a_ranking_needs_a_query_and_documents(fields: dict[str, Any]) -> None:
    assert Host(Reranker(), "reranker").post("/v1/rerank", fields).status == 400


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"text_1": "a", "text_2": "b"}, 1),
        ({"text_1": "a", "text_2": ["b", "c"]}, 2),
        ({"queries": ["a", "b"], "documents": ["c", "d"]}, 2),
    ],
)
def test_pairs_are_scored(fields: dict[str, Any], count: int) -> None:
    answer = Host(Reranker(), "reranker").post("/v1/score", fields).json()
    assert [row["index"] for row in answer["data"]] == list(range(count))
    assert answer["created"] == NOW


def test_lists_of_unequal_length_are_no_pairs() -> None:
    reply = Host(Reranker(), "reranker").post("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]})
    assert "2 texts" in reply.error["message"]


@pytest.mark.parametrize(
    ("format_", "expected"),
    [
        ("json", b'{"text":"a b"}'),
        ("text", b"a b\n"),
        ("srt", b"1\n00:00:00,000 --> 00:00:01,500\na\n\n2\n01:01:01,250 --> 01:01:02,000\nb\n\n"),
        ("vtt", b"WEBVTT\n\n00:00:00.000 --> 00:00:01.500\na\n\n01:01:01.250 --> 01:01:02.000\nb\n\n"),
    ],
)
def test_a_transcript_comes_in_the_form_that_was_asked_for(format_: str, expected: bytes) -> None:
    model = Transcriber()
    assert transcribe(model, file=b"\0sound\r\n", model="m", response_format=format_).body == expected
    assert model.got[0].data == b"\0sound\r\n"
    assert model.got[0].timestamps == (format_ in ("srt", "vtt"))


def test_a_verbose_transcript_has_its_segments() -> None:
    answer = transcribe(Transcriber(), file=b"x", response_format="verbose_json", language="en", temperature="0.5")
    assert answer.json()["segments"][1] == {"id": 1, "start": 3661.25, "end": 3662.0, "text": " b"}
    assert "words" not in answer.json()


@pytest.mark.parametrize(
    ("asked", "segments", "words"),
    [(["segment"], True, False), (["word"], False, True), (["word", "segment"], True, True)],
)
def test_a_verbose_transcript_has_the_times_that_were_asked_for(asked: list[str], segments: bool, words: bool) -> None:
    model = Transcriber()
    body, content_type = form(file=b"x", response_format="verbose_json")
    more = "".join(
        f'--XyZ\r\nContent-Disposition: form-data; name="timestamp_granularities[]"\r\n\r\n{one}\r\n' for one in asked
    )
    host = Host(model, "transcription")
    answer = host.post("/v1/audio/transcriptions", more.encode() + body, content_type=content_type).json()
    assert (model.got[0].timestamps, model.got[0].words) == (segments, words)
    assert ("segments" in answer, "words" in answer) == (segments, words)
    assert answer.get("words", WORDS) == WORDS


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "file"),
        ({"file": b"x", "response_format": "doc"}, "response_format"),
        ({"file": b"x", "temperature": "hot"}, "temperature"),
        ({"file": b"x", "stream": "true"}, "stream"),
        ({"file": b"x", "languages": "en"}, "languages"),
        ({"file": b"x", "timestamp_granularities[]": "word"}, "timestamp_granularities[]"),
        ({"file": b"x", "timestamp_granularities": "word", "response_format": "srt"}, "timestamp_granularities[]"),
        ({"file": b"x", "timestamp_granularities[]": "char"}, "timestamp_granularities[]"),
    ],
)
def test_a_wrong_transcription_is_refused(fields: dict[str, Any], named: str) -> None:
    reply = transcribe(Transcriber(), **fields)
    assert reply.status == 400
    assert reply.error["param"] == named


def test_a_prompt_of_digits_is_a_text() -> None:
    model = Transcriber()
    assert transcribe(model, file=b"x", prompt="2024", temperature="0.5").status == 200
    assert (model.got[0].prompt, model.got[0].temperature) == ("2024", 0.5)


def test_what_is_no_form_is_refused() -> None:
    assert Host(Transcriber(), "transcription").post("/v1/audio/transcriptions", {"file": "x"}).status == 400


def test_speech_is_a_wav_file_or_bare_samples() -> None:
    host = Host(Speaker(), "speech")
    with wave.open(io.BytesIO(host.post("/v1/audio/speech", {"input": "a"}).body)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16000, 1, 3)
    raw = host.post("/v1/audio/speech", {"input": "a", "response_format": "pcm"})
    assert struct.unpack("<3h", raw.body) == (0, 32767, -32767)
    assert raw.headers[b"content-type"] == b"audio/pcm"


def test_images_are_base64() -> None:
    model = Painter()
    fields = {"prompt": "p", "n": 2, "size": "64x128", "seed": 3, "negative_prompt": "n"}
    answer = Host(model, "image").post("/v1/images/generations", fields).json()
    assert answer == {"created": NOW, "data": [{"b64_json": base64.b64encode(b"png").decode()}] * 2}
    assert model.got == [Picture("p", 64, 128, "n", None, None, 3, 2)]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"size": "64"},
        {"size": "63x64"},
        {"size": "9999x64"},
        {"response_format": "url"},
        {"n": 11},
        {"num_inference_steps": 1000},
    ],
)
def test_a_wrong_image_is_refused(fields: dict[str, Any]) -> None:
    body = {"prompt": "p", **fields} if fields else {}
    assert Host(Painter(), "image").post("/v1/images/generations", body).status == 400


# Tokens


def test_a_text_and_a_chat_have_tokens() -> None:
    host = Host(Speller())
    assert host.post("/tokenize", {"prompt": "hi", "return_token_strs": True}).json() == {
        "tokens": [104, 105],
        "count": 2,
        "max_model_len": 100,
        "token_strs": ["h", "i"],
    }
    assert host.post("/tokenize", {"messages": [{"role": "user", "content": "abc"}]}).json()["count"] == 3
    assert host.post("/detokenize", {"tokens": [104, 105]}).json() == {"prompt": "hi"}


@pytest.mark.parametrize("fields", [{}, {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}])
def test_tokens_are_of_one_thing(fields: dict[str, Any]) -> None:
    assert Host(Speller()).post("/tokenize", fields).status == 400


def test_what_is_no_token_is_refused() -> None:
    assert Host(Speller()).post("/detokenize", {"tokens": [9999]}).status == 400


# Who may ask, and for what


@pytest.mark.parametrize("token", ["", "wrong", "privat"])
def test_only_the_token_is_accepted(token: str) -> None:
    host = Host(Speller())
    assert host.get("/v1/models", token=token).status == 401
    assert host.post("/v1/completions", {"prompt": "a"}, token=token).status == 401


@pytest.mark.parametrize(("path", "status"), [("/v1/completions", 401), ("/health", 200)])
def test_without_the_token_no_body_is_read(path: str, status: int) -> None:
    async def receive() -> Any:
        pytest.fail("it has read the body")

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(Host(Speller()).application(scope, receive, send))
    assert sent[0]["status"] == status


def test_health_says_whether_the_model_is_there() -> None:
    assert Host(None).get("/health", token="").status == 503
    assert Host(Speller()).get("/health", token="").status == 200


def test_while_it_loads_it_says_so() -> None:
    host = Host(None)
    reply = host.post("/v1/completions", {"prompt": "a"})
    assert reply.status == 503
    assert reply.headers[b"retry-after"] == b"1"
    assert host.post("/ready").status == 503
    assert Host(Speller()).post("/ready").status == 200


def test_the_model_is_listed_with_its_context() -> None:
    card = Host(Speller()).get("/v1/models").json()["data"][0]
    assert (card["id"], card["max_model_len"], card["created"]) == ("the-model", 100, NOW)


@pytest.mark.parametrize("task", ROUTES)
def test_another_models_task_is_refused_with_its_own(task: str) -> None:
    host = Host(object(), task)
    for path in {path for paths in ROUTES.values() for path in paths} - set(ROUTES[task]):
        reply = host.post(path)
        assert reply.status == 400
        assert all(own in reply.error["message"] for own in ROUTES[task])


def test_an_unknown_path_or_method_is_refused() -> None:
    host = Host(Speller())
    assert host.post("/v1/nothing").status == 404
    assert host.get("/v1/completions").status == 405


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    reply = Host(Speller()).post("/v1/completions", body)
    assert reply.status == 400
    assert json.loads(reply.body)["error"]["code"] == "invalid_request"


# Defects of the engine's own


class Broken(Speller):
    """Fails after its first token."""

    async def generate(self, job: Job) -> AsyncGenerator[Token, None]:
        yield Token(ord("a"))
        raise ZeroDivisionError("a defect")


class Silent(Speller):
    """Fails before its first token."""

    def generate(self, job: Job) -> AsyncGenerator[Token, None]:
        raise ZeroDivisionError("a defect")


def test_a_defect_in_a_stream_is_its_last_event(capsys: pytest.CaptureFixture[str]) -> None:
    reply = Host(Broken()).post("/v1/completions", {"prompt": "a", "stream": True})
    assert (reply.status, reply.starts, reply.done) == (200, 1, True)
    assert reply.events[0]["choices"][0]["text"] == "a"
    assert reply.events[-1]["error"]["code"] == "internal_error"
    assert "ZeroDivisionError: a defect" in capsys.readouterr().out


@pytest.mark.parametrize(("model", "stream"), [(Broken(), False), (Silent(), False), (Silent(), True)])
def test_a_defect_before_the_answer_is_a_500(model: Speller, stream: bool, capsys: pytest.CaptureFixture[str]) -> None:
    reply = Host(model).post("/v1/completions", {"prompt": "a", "stream": stream})
    assert (reply.status, reply.starts, reply.error["code"]) == (500, 1, "internal_error")
    assert "ZeroDivisionError: a defect" in capsys.readouterr().out
