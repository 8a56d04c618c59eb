"""Speech, transcriptions, images, rankings and responses through the real server, with the openai SDK and from the
command line. Vendors' own formats for them: ``test_media_vendors.py``."""

from __future__ import annotations

import base64
import io
import json
import threading
import wave
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP
from typing import TYPE_CHECKING, Any

import openai
import pytest
from tests.fakes import HANG, FakeUpstream, Received, Reply, json_reply, sse_reply
from tests.gateway import deploy, detail, post, wait_free
from tests.harness import Byzer
from tests.integration.media import SOUND, error_of, of, sound_reply, speak
from tests.integration.scripted_server import body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\nx").decode()


@pytest.fixture(scope="module")
def vendor() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server(make_byzer: Callable[..., Byzer], vendor: FakeUpstream) -> Byzer:
    byzer = make_byzer(BYZERLLM_MAX_BODY_MB="1")
    byzer.run("server", "start")
    models = {"speech": "tts-1", "listen": "whisper-1", "paint": "gpt-image-1", "rank": "my-reranker", "chat": "gpt-5"}
    for name, model in models.items():
        deploy(byzer, name, vendor, model=model)
    return byzer


@pytest.fixture
def client(server: Byzer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def parts(request: Received) -> dict[str, bytes]:
    """A form as another reader reads it."""
    head = b"Content-Type: " + request.headers["content-type"].encode() + b"\r\n\r\n"
    message = BytesParser(EmailMessage, policy=HTTP).parsebytes(head + request.body)
    found: dict[str, bytes] = {}
    for part in message.iter_parts():
        content: Any = part.get_payload(decode=True)
        found[str(part.get_param("name", header="content-disposition"))] = content
    return found


# -- OpenAI's own format ----------------------------------------------------------------------------------------------


def test_speech(server: Byzer, client: openai.OpenAI, vendor: FakeUpstream) -> None:
    vendor.script(sound_reply())
    spoken = client.audio.speech.create(model="speech", voice="nova", input="你好", response_format="wav", speed=1.25)
    assert spoken.content == SOUND
    assert spoken.response.headers["content-type"] == "audio/mpeg"
    request = vendor.requests[-1]
    assert (request.path, request.headers["authorization"]) == ("/v1/audio/speech", "Bearer sk-upstream")
    asked = {"model": "tts-1", "voice": "nova", "input": "你好", "response_format": "wav", "speed": 1.25}
    assert request.json() == asked
    vendor.script(sound_reply())
    assert speak(server, "speech").body == SOUND
    assert vendor.requests[-1].json()["voice"] == "alloy", "a voice is demanded, and the table has one"


def test_speech_is_heard_while_it_is_made(client: openai.OpenAI, vendor: FakeUpstream) -> None:
    go = threading.Event()
    vendor.script(sound_reply(SOUND[:100], go, SOUND[100:]))
    with client.audio.speech.with_streaming_response.create(model="speech", voice="nova", input="x") as spoken:
        pieces = spoken.iter_bytes()
        assert next(pieces) == SOUND[:100]
        go.set()  # the rest is sent only now
        assert b"".join(pieces) == SOUND[100:]


def test_a_listener_that_leaves_frees_the_upstream(server: Byzer, client: openai.OpenAI, vendor: FakeUpstream) -> None:
    vendor.script(sound_reply(SOUND[:100], HANG))
    with client.audio.speech.with_streaming_response.create(model="speech", voice="nova", input="x") as spoken:
        assert next(spoken.iter_bytes())
    vendor.requests[-1].wait_cancelled(2)
    wait_free(server, "speech")


def test_transcription(client: openai.OpenAI, vendor: FakeUpstream) -> None:
    vendor.script(json_reply({"text": "hello", "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 3}}))
    text = client.audio.transcriptions.create(model="listen", file=("ä.wav", SOUND), language="de", temperature=0.5)
    assert text.text == "hello"
    request = vendor.requests[-1]
    assert request.path == "/v1/audio/transcriptions"
    assert parts(request) == {"model": b"whisper-1", "file": SOUND, "language": b"de", "temperature": b"0.5"}


@pytest.mark.parametrize(("kind", "content"), [("text/plain; charset=utf-8", "hallo\n"), ("text/vtt", "WEBVTT\n\n")])
def test_any_kind_of_transcript_passes(client: openai.OpenAI, vendor: FakeUpstream, kind: str, content: str) -> None:
    vendor.script(Reply([content.encode()], headers={"content-type": kind}))
    assert client.audio.transcriptions.create(model="listen", file=b"x", response_format="vtt") == content


def test_a_transcript_in_events(client: openai.OpenAI, vendor: FakeUpstream) -> None:
    events = [{"type": "transcript.text.delta", "delta": "hi"}, {"type": "transcript.text.done", "text": "hi"}]
    vendor.script(sse_reply(*events, done=False))
    stream = client.audio.transcriptions.create(model="listen", file=b"x", stream=True)
    assert [event.type for event in stream] == ["transcript.text.delta", "transcript.text.done"]
    assert parts(vendor.requests[-1])["stream"] == b"true"


def test_a_form_is_sent_again_where_that_can_help(server: Byzer, client: openai.OpenAI, vendor: FakeUpstream) -> None:
    retries = detail(server, "listen")["requests"]["retries"]
    vendor.script(json_reply({"error": {"message": "busy"}}, 503), json_reply({"text": "hello"}))
    assert client.audio.transcriptions.create(model="listen", file=SOUND).text == "hello"
    first, second = vendor.requests[-2:]
    assert parts(first) == parts(second)
    assert detail(server, "listen")["requests"]["retries"] == retries + 1


def test_a_form_has_the_same_limit_as_any_body(client: openai.OpenAI, vendor: FakeUpstream) -> None:
    before = len(vendor.requests)
    with pytest.raises(openai.APIStatusError, match="over the limit of 1 MiB") as caught:
        client.audio.transcriptions.create(model="listen", file=b"x" * 1_100_000)
    assert caught.value.status_code == 413
    assert len(vendor.requests) == before


def test_a_form_that_is_none_is_refused(server: Byzer) -> None:
    answer = server.http("POST", "/v1/audio/transcriptions", {"model": "listen"})
    assert (answer.status, error_of(answer)["type"]) == (400, "invalid_request_error")
    assert "must be a form" in error_of(answer)["message"]


def test_images(client: openai.OpenAI, vendor: FakeUpstream) -> None:
    usage = {"input_tokens": 9, "output_tokens": 100, "total_tokens": 109}
    vendor.script(json_reply({"created": 1, "data": [{"b64_json": PNG}], "usage": usage}))
    images = client.images.generate(model="paint", prompt="a house", size="1024x1024", quality="low")
    assert images.data
    assert images.data[0].b64_json == PNG
    request = vendor.requests[-1]
    assert request.path == "/v1/images/generations"
    asked = {"model": "gpt-image-1", "prompt": "a house", "size": "1024x1024", "quality": "low"}
    assert request.json() == asked, "and nothing that was not asked for"


def test_an_image_in_events(client: openai.OpenAI, vendor: FakeUpstream) -> None:
    last = {"type": "image_generation.completed", "b64_json": "x" * 100_000}
    vendor.script(sse_reply({"type": "image_generation.partial_image", "b64_json": PNG}, last, done=False))
    stream: Any = client.images.generate(model="paint", prompt="a house", stream=True)
    assert [len(event.b64_json) for event in stream] == [len(PNG), 100_000]


def test_ranking(server: Byzer, vendor: FakeUpstream) -> None:
    ranked = {"results": [{"index": 1, "relevance_score": 0.9}], "meta": {"tokens": {"input_tokens": 28}}}
    vendor.script(json_reply(ranked))
    answer = server.http("POST", "/v1/rerank", {"model": "rank", "query": "q", "documents": ["a", "b"], "top_n": 1})
    assert (answer.status, answer.json()) == (200, ranked)
    assert vendor.requests[-1].path == "/v1/rerank"
    assert vendor.requests[-1].json()["model"] == "my-reranker"
    assert detail(server, "rank")["tokens"]["prompt"] == 28


RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "gpt-5",
    "error": None,
    "output": [
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "hi", "annotations": []}],
        }
    ],
    "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 2, "total_tokens": 11},
}


def test_responses(server: Byzer, client: openai.OpenAI, vendor: FakeUpstream) -> None:
    before = detail(server, "chat")["tokens"]
    vendor.script(json_reply(RESPONSE))
    answer = client.responses.create(model="chat", input="hello", max_output_tokens=5)
    assert (answer.output_text, answer.usage and answer.usage.output_tokens) == ("hi", 2)
    assert vendor.requests[-1].path == "/v1/responses"
    assert vendor.requests[-1].json() == {"model": "gpt-5", "input": "hello", "max_output_tokens": 5}
    after = detail(server, "chat")["tokens"]
    assert (after["prompt"] - before["prompt"], after["completion"] - before["completion"]) == (9, 2)


def test_a_failed_response_is_the_callers_to_read(client: openai.OpenAI, vendor: FakeUpstream) -> None:
    error = {"code": "server_error", "message": "it broke"}
    vendor.script(json_reply({**RESPONSE, "status": "failed", "error": error}))
    answer = client.responses.create(model="chat", input="hello")
    assert answer.error
    assert (answer.status, answer.error.message) == ("failed", "it broke")


def response_events(*more: dict[str, Any]) -> list[bytes]:
    texts: list[dict[str, Any]] = [
        {"type": "response.output_text.delta", "delta": t, "item_id": "m", "output_index": 0} for t in "hi"
    ]
    created = {"type": "response.created", "response": {**RESPONSE, "status": "in_progress"}}
    events: list[dict[str, Any]] = [created, *texts, *more]
    return [
        b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps({**e, "sequence_number": n}).encode())
        for n, e in enumerate(events)
    ]


def test_a_response_in_events(client: openai.OpenAI, vendor: FakeUpstream) -> None:
    events = response_events({"type": "response.completed", "response": {**RESPONSE, "metadata": {"x": "y" * 9000}}})
    vendor.script(Reply(events, headers={"content-type": "text/event-stream"}, framing="chunked"))
    kinds = [event.type for event in client.responses.create(model="chat", input="hello", stream=True)]
    assert kinds == ["response.created", *["response.output_text.delta"] * 2, "response.completed"]
    vendor.script(Reply(response_events(), headers={"content-type": "text/event-stream"}, framing="chunked"))
    with pytest.raises(openai.APIError, match="before the answer was whole"):
        list(client.responses.create(model="chat", input="hello", stream=True))


def test_what_an_instance_is_not_for_is_refused_with_what_it_is_for(server: Byzer, vendor: FakeUpstream) -> None:
    before = len(vendor.requests)
    for model, path, has in (
        ("speech", "/v1/chat/completions", "speech has no chat. It has: speech. Use /v1/audio/speech."),
        ("rank", "/v1/images/generations", "rank has no image. It has: rerank. Use /v1/rerank."),
        ("paint", "/v1/responses", "paint has no responses. It has: image. Use /v1/images/generations."),
    ):
        answer = post(server, model, path)
        assert (answer.status, error_of(answer)["message"]) == (400, has)
    deploy(server, "kimi", vendor, of("saas/kimi"))
    refusal = error_of(speak(server, "kimi"))
    assert refusal["message"] == "kimi has no speech. It has: chat. Use /v1/chat/completions."
    assert len(vendor.requests) == before


def test_the_paths_are_listed_and_take_post_only(server: Byzer) -> None:
    known = error_of(server.http("POST", "/v1/nothing", {}))["message"]
    for path in (
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/images/generations",
        "/v1/rerank",
        "/v1/responses",
    ):
        assert path in known
        assert server.http("GET", path).status == 405
    assert server.http("GET", "/v1/models/listen").json()["task"] == "transcription"


# -- the command line, on the built-in mock ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mocked(server: Byzer) -> Byzer:
    for name in ("speech", "transcription", "image", "rerank", "chat"):
        kind = ("--pretrained_model_type", "saas/mock", "--infer_params", f"saas.model=mock-{name}")
        server.run("deploy", "--model", f"mock_{name}", *kind)
    return server


def test_query_writes_speech(mocked: Byzer, tmp_path: Path) -> None:
    ask = ("query", "--model", "mock_speech", "--query", "hi")
    done = mocked.run(*ask, "--output_file", tmp_path / "a.wav", "--image", "x.png")
    assert (done.stdout, "--image has no effect" in body(done)) == ("", True)
    with wave.open(io.BytesIO((tmp_path / "a.wav").read_bytes())) as sound:
        assert sound.getnframes() == 1600


def test_query_writes_an_image(mocked: Byzer, tmp_path: Path) -> None:
    mocked.run("query", "--model", "mock_image", "--query", "hi", "--output_file", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n")
    done = mocked.run("query", "--model", "mock_image", "--query", "hi", "--output_file", tmp_path / "a.jpg")
    assert body(done) == f"The image is a png.\nWritten to {tmp_path / 'a.jpg'}.\n"


def test_query_fetches_an_image_that_is_only_named(server: Byzer, vendor: FakeUpstream, tmp_path: Path) -> None:
    deploy(server, "dalle", vendor, model="dall-e-3")
    ask = ("query", "--model", "dalle", "--query", "hi", "--output_file", tmp_path / "a.png")
    with FakeUpstream() as files:
        vendor.script(
            json_reply({"data": [{"url": f"{files.url}/a.png"}]}), json_reply({"data": [{"url": "file:///x"}]})
        )
        files.default = Reply([b"the image"])
        server.run(*ask)
        assert (tmp_path / "a.png").read_bytes() == b"the image"
        assert "The answer has no image" in server.run(*ask, code=1).stderr
        vendor.script(json_reply({"data": [{"url": f"{files.url}/a.png"}]}))
        files.default = Reply([], 404)
        assert "could not be fetched" in server.run(*ask, code=1).stderr


def test_query_writes_down_what_it_hears(mocked: Byzer, server: Byzer, vendor: FakeUpstream, tmp_path: Path) -> None:
    (tmp_path / 'a "b".wav').write_bytes(SOUND)
    ask = ("query", "--model", "mock_transcription", "--audio")
    assert mocked.run(*ask, tmp_path / 'a "b".wav').stdout.startswith("You sent 256")
    assert "No such file" in mocked.run(*ask, tmp_path / "none.wav", code=2).stderr
    vendor.script(json_reply({"text": "hello"}))
    words = ("--query", "ByzerLLM", "--output_file", tmp_path / "a.txt")
    server.run("query", "--model", "listen", "--audio", tmp_path / 'a "b".wav', *words)
    assert (tmp_path / "a.txt").read_text() == "hello"
    assert parts(vendor.requests[-1]) == {"model": b"whisper-1", "prompt": b"ByzerLLM", "file": SOUND}


def test_query_shows_an_image(server: Byzer, vendor: FakeUpstream, tmp_path: Path) -> None:
    (tmp_path / "a.JPG").write_bytes(b"jpeg")
    delta = {"choices": [{"index": 0, "delta": {"content": "a cat"}, "finish_reason": "stop"}]}
    vendor.script(sse_reply(delta))
    ask = ("query", "--model", "chat", "--query", "What is it?", "--image")
    assert server.run(*ask, tmp_path / "a.JPG").stdout == "a cat\n"
    assert vendor.requests[-1].json()["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(b'jpeg').decode()}"}},
        {"type": "text", "text": "What is it?"},
    ]
    assert "must end with .png" in server.run(*ask, tmp_path / "a.bmp", code=2).stderr
    assert "No such file" in server.run(*ask, tmp_path / "b.png", code=2).stderr


@pytest.mark.parametrize(
    ("task", "name", "said"),
    [
        ("speech", "a.png", "answers with sound, which is no .png file"),
        ("image", "a.MP3", "answers with an image, which is no .mp3 file"),
        ("image", "a.txt", "ends with .png"),
        ("chat", "a.jpg", "answers with text, which is no .jpg file"),
    ],
)
def test_query_refuses_a_file_of_another_kind_before_it_asks(
    mocked: Byzer, tmp_path: Path, task: str, name: str, said: str
) -> None:
    def asked() -> object:
        return mocked.json("stat", "--model", f"mock_{task}")["total_requests"]

    before = asked()
    ask = ("query", "--model", f"mock_{task}", "--query", "hi", "--output_file")
    assert said in mocked.run(*ask, tmp_path / name, code=2).stderr
    assert asked() == before
    mocked.run(*ask, tmp_path / "a.unknown")
    assert asked() != before


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        ("chat", (), "Give --query TEXT, or --audio FILE to an instance that writes down what it hears."),
        ("transcription", ("--query", "x"), "Add --audio FILE"),
        ("chat", ("--audio", "a.wav"), "Add --query TEXT, what mock_chat is to do with the sound."),
        ("chat", ("--query", "x", "--image", "http://host/a.png"), "--image http://host/a.png: No such file"),
    ],
)
def test_query_says_what_is_missing(mocked: Byzer, task: str, given: tuple[str, ...], said: str) -> None:
    assert said in mocked.run("query", "--model", f"mock_{task}", *given, code=2).stderr


def test_a_mock_ranks(mocked: Byzer) -> None:
    asked = {
        "model": "mock_rerank",
        "query": "red house",
        "documents": ["a tree", "the Red house", "house"],
        "top_n": 2,
    }
    answer = mocked.http("POST", "/v1/rerank", asked).json()
    assert [(r["index"], r["relevance_score"]) for r in answer["results"]] == [(1, 1.0), (2, 0.5)]
