"""What the host does with real models of each kind, and with what a request may ask of a chat model."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import subprocess
import wave
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.engines import Running, options_of, python_of
from tests.fixtures_models import SAY

from byzerllm.engines import engine

pytestmark = pytest.mark.timeout(600)
SCRIPT = Path(__file__).parents[2] / "scripts" / "tiny_hf_media.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Starts workers; all that were started end with the module."""
    started: list[Running] = []

    def run(path: Path, **params: Any) -> Running:
        found = engine("transformers")
        options = options_of("transformers", path, **params)
        found.check(options)
        started.append(Running(found, options, tmp_path_factory.mktemp("logs")))
        return started[-1].ready()

    yield run
    for worker in started:
        worker.stop(grace=0)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model of a kind, made by the interpreter that has torch."""

    def make(kind: str) -> Path:
        path = tmp_path_factory.mktemp("media") / kind
        command = [python_of("transformers"), str(SCRIPT), str(path), "--kind", kind]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return path

    return make


@pytest.fixture(scope="module")
def random_worker(run: Callable[..., Running], random_hf: Path) -> Running:
    return run(random_hf)


def complete(worker: Running, **fields: Any) -> Any:
    status, answer = worker.ask("/v1/completions", **{"prompt": "answer", "max_tokens": 12, **fields})
    assert status == 200, answer
    return answer


def says(worker: Running, **fields: Any) -> str:
    text: str = complete(worker, **fields)["choices"][0]["text"]
    return text


def test_concurrent_requests_do_not_influence_each_other(random_worker: Running) -> None:
    asked = [{"seed": i, "temperature": 1.0, "max_tokens": 8 + 3 * i, "prompt": "city " * (1 + i)} for i in range(10)]
    apart = [says(random_worker, **fields) for fields in asked]
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda fields: says(random_worker, **fields), asked))
    assert together == apart


def test_greedy_has_three_names(random_worker: Running) -> None:
    greedy = says(random_worker, temperature=0)
    assert says(random_worker, top_k=1, seed=5) == greedy
    assert says(random_worker, top_p=0, seed=6) == greedy


def test_penalties_end_a_repetition(random_worker: Running) -> None:
    def words(**fields: Any) -> int:
        answer = complete(random_worker, temperature=0, logprobs=0, max_tokens=30, **fields)
        return len(set(answer["choices"][0]["logprobs"]["tokens"]))

    plain = words()
    assert words(frequency_penalty=2) > plain
    assert words(presence_penalty=2) > plain
    assert words(repetition_penalty=2.0) > plain


def test_the_likeliest_tokens_are_told(random_worker: Running) -> None:
    logprobs = complete(random_worker, temperature=0, logprobs=3)["choices"][0]["logprobs"]
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == logprob == max(top.values())
        assert len(top) == 3
        assert sum(map(math.exp, top.values())) < 1


def test_several_answers_differ_and_are_the_same_again(random_worker: Running) -> None:
    texts = [
        [choice["text"] for choice in complete(random_worker, n=3, seed=4, temperature=1.0)["choices"]] for _ in "ab"
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3


def test_a_json_schema_is_kept(random_worker: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    for seed in range(4):
        format_ = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        choice = random_worker.chat(response_format=format_, seed=seed, max_tokens=200)["choices"][0]
        answer = json.loads(choice["message"]["content"])
        assert answer["a"] in ("x", "y")
        assert isinstance(answer["b"], bool)
        assert choice["finish_reason"] == "stop"


def test_a_schema_that_cannot_be_kept_is_refused(random_worker: Running) -> None:
    bad = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "nonsense"}}}
    for stream in (False, True):
        status, answer = random_worker.ask(
            "/v1/chat/completions", messages=[{"role": "user", "content": "a"}], response_format=bad, stream=stream
        )
        assert status == 400
        assert answer["error"]["param"] == "response_format"


def test_tokens_come_and_go(random_worker: Running) -> None:
    _, found = random_worker.ask("/tokenize", prompt="hello world 你好")
    assert random_worker.ask("/detokenize", tokens=found["tokens"])[1] == {"prompt": "hello world 你好"}
    assert found["max_model_len"] == 2048
    messages = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert random_worker.ask("/tokenize", messages=messages)[1]["count"] == 9
    assert random_worker.ask("/detokenize", tokens=[99999])[0] == 400


def test_images_are_not_for_a_text_model(random_worker: Running) -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    status, answer = random_worker.ask("/v1/chat/completions", messages=messages)
    assert status == 400
    assert "text only" in answer["error"]["message"]


def test_without_a_chat_template_there_is_no_chat(run: Callable[..., Running], hf_without_template: Path) -> None:
    worker = run(hf_without_template)
    status, answer = worker.ask("/v1/chat/completions", messages=[{"role": "user", "content": "a"}])
    assert status == 400
    assert "tokenizer_config.json" in answer["error"]["message"]
    assert "backend.chat_template" in answer["error"]["message"]
    assert worker.ask("/v1/completions", prompt="a", max_tokens=2)[0] == 200
    worker.stop()


def test_a_template_and_a_context_can_be_given(
    run: Callable[..., Running], hf_without_template: Path, tmp_path: Path
) -> None:
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    params = {"backend.chat_template": str(tmp_path / "chat.jinja"), "backend.max_model_len": "64"}
    worker = run(hf_without_template, **params)
    assert worker.says(max_tokens=30) == SAY
    status, answer = worker.ask("/v1/chat/completions", messages=[{"role": "user", "content": "x" * 100}])
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"
    assert "64" in answer["error"]["message"]
    worker.stop()


# Other kinds of models


def test_embeddings(run: Callable[..., Running], hf_embedder: Path) -> None:
    worker = run(hf_embedder, kind="bge")
    texts = ["hello world", "weather", "hello world"] * 15
    status, answer = worker.ask("/v1/embeddings", input=texts)
    assert status == 200
    rows = [row["embedding"] for row in answer["data"]]
    assert all(abs(a - b) < 1e-5 for a, b in zip(rows[0], rows[44], strict=True))
    coded = worker.ask("/v1/embeddings", input=texts[0], encoding_format="base64", dimensions=8)[1]["data"][0]
    short = struct.unpack("<8f", base64.b64decode(coded["embedding"]))
    assert math.isclose(math.hypot(*short), math.hypot(*rows[0]), rel_tol=1e-4)
    assert worker.ask("/v1/embeddings", input="a", dimensions=65)[0] == 400
    status, answer = worker.ask("/v1/embeddings", input=["a", "hello " * 200])
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "202" in answer["error"]["message"]
    worker.stop()


def test_many_embeddings_at_a_time(run: Callable[..., Running], hf_embedder: Path) -> None:
    worker = run(hf_embedder)
    texts = [" ".join(["hello world"] * (1 + i % 40)) for i in range(64)]

    def ask(_: int) -> tuple[int, int]:
        status, answer = worker.ask("/v1/embeddings", input=texts)
        counted = worker.ask("/tokenize", prompt=texts[39])[0]
        return (status, answer["usage"]["total_tokens"]) if counted == 200 else (counted, 0)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(60)))
    assert set(answers) == {(200, answers[0][1])}
    worker.stop()


def test_ranking(run: Callable[..., Running], hf_reranker: Path) -> None:
    worker = run(hf_reranker, kind="bge_rerank")
    documents = ["hello", "the weather", "city"]
    ranked = worker.ask("/v1/rerank", query="hello world", documents=documents)[1]["results"]
    scored = worker.ask("/v1/score", text_1="hello world", text_2=documents)[1]["data"]
    assert [row["index"] for row in ranked] == sorted(range(3), key=lambda i: -scored[i]["score"])
    assert worker.ask("/v1/chat/completions")[0] == 400
    worker.stop()


def png(width: int = 40, height: int = 30, color: tuple[int, int, int] = (200, 30, 40)) -> str:
    """A picture of one color as a data URL; one that is much larger is black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bits = 8 if width < 1000 else 1
    rows = (b"\0" + (bytes(color * width) if bits == 8 else bytes(-(-width // 8)))) * height
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2 if bits == 8 else 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def seeing_worker(run: Callable[..., Running], media: Callable[[str], Path]) -> Running:
    return run(media("vision"))


def about(text: str, *urls: str) -> list[dict[str, Any]]:
    """A message with images."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *images]}]


def test_a_chat_about_an_image(seeing_worker: Running) -> None:
    worker = seeing_worker

    def ask(url: str) -> tuple[int, Any]:
        messages = about("what is it", url)
        return worker.ask("/v1/chat/completions", messages=messages, temperature=0, max_tokens=5)

    status, answer = ask(png())
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["usage"]["prompt_tokens"] > worker.chat(max_tokens=1)["usage"]["prompt_tokens"] + 15
    ppm = "data:image/x-portable-pixmap;base64," + base64.b64encode(b"P6 8 8 255\n" + bytes(192)).decode()
    large = png(12_300, 12_300)  # 20 kB
    for url in ("http://localhost/x.png", "data:image/png;base64,AAAA", "file:///etc/passwd", ppm, large):
        status, answer = ask(url)
        assert status == 400
        assert answer["error"]["param"] == "messages"
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    for content in (5, {"type": "text", "text": "a"}, [5], True, [sound]):
        status, answer = worker.ask("/v1/chat/completions", messages=[{"role": "user", "content": content}])
        assert (status, answer["error"]["param"]) == (400, "messages")


def test_chats_with_and_without_images_are_answered_together(seeing_worker: Running) -> None:
    colors = [png(color=color) for color in ((250, 20, 20), (20, 250, 20), (20, 20, 250))]
    asked = [about("what is it", url) for url in colors]
    asked += [about("compare them", *colors[:2]), about("and these", *colors), about("hello"), about("word " * 600)]

    def says(messages: list[dict[str, Any]]) -> list[str]:
        chat = seeing_worker.chat(messages=messages, temperature=0, max_tokens=24, ignore_eos=True, logprobs=True)
        return [token["token"] for token in chat["choices"][0]["logprobs"]["content"]]

    apart = [says(messages) for messages in asked]
    assert apart[0] != apart[1]  # it sees the color
    with seeing_worker.stream(messages=asked[0], max_tokens=1900, ignore_eos=True), ThreadPoolExecutor(7) as pool:
        assert list(pool.map(says, asked)) == apart
    log = "".join(path.read_text("utf-8") for path in seeing_worker.logs.iterdir())
    assert "warming up" in log
    assert "cannot be batched" not in log


def form(**fields: str | bytes) -> tuple[bytes, str]:
    parts = b""
    for name, value in fields.items():
        file = b'; filename="f.wav"' if isinstance(value, bytes) else b""
        data = value if isinstance(value, bytes) else value.encode()
        parts += b'--XyZ\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name.encode(), file, data)
    return parts + b"--XyZ--\r\n", "multipart/form-data; boundary=XyZ"


def wav(rate: int, frames: int) -> bytes:
    """Silence, 8 bits a sample."""
    facts = struct.pack("<HHIIHH", 1, 1, rate, rate, 1, 8)
    body = b"WAVEfmt " + struct.pack("<I", 16) + facts + b"data" + struct.pack("<I", frames) + b"\x80" * frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_speech_is_made_and_written_down(run: Callable[..., Running], media: Callable[[str], Path]) -> None:
    speaker = run(media("speech"))
    status, sound = speaker.post("/v1/audio/speech", b'{"input": "hello world", "speed": 1.5}')
    assert status == 200
    with wave.open(io.BytesIO(sound)) as file:
        assert file.getframerate() == 16000
        assert file.getnframes() > 1000
    status, compressed = speaker.post("/v1/audio/speech", b'{"input": "hello world", "response_format": "mp3"}')
    assert status == 200
    assert speaker.post("/v1/audio/speech", b'{"input": "a", "voice": "alloy"}')[0] == 400
    speaker.stop()
    hearer = run(media("transcription"), kind="whisper")
    for data in (sound, compressed):
        body, content_type = form(file=data, language="en", response_format="verbose_json")
        status, answer = hearer.post("/v1/audio/transcriptions", body, content_type=content_type)
        assert status == 200, answer
        assert json.loads(answer)["duration"] > 0.1
    # The last two would take all memory.
    bad = (b"no sound", b"", wav(8000, 0), wav(2**31 - 1, 200), wav(4000, 7201 * 4000))
    wrong: list[dict[str, Any]] = [{"file": sound, "language": "xx"}, {}, *({"file": data} for data in bad)]
    for fields in wrong:
        body, content_type = form(**fields)
        assert hearer.post("/v1/audio/transcriptions", body, content_type=content_type)[0] == 400
    hearer.stop()


def test_images_are_made(run: Callable[..., Running], media: Callable[[str], Path]) -> None:
    worker = run(media("image"), kind="stable_diffusion")
    fields = {"prompt": "hello", "num_inference_steps": 2, "size": "64x64", "n": 2}
    made = [worker.ask("/v1/images/generations", seed=seed, **fields)[1]["data"] for seed in (3, 3, 4)]
    assert [len(data) for data in made] == [2, 2, 2]
    assert base64.b64decode(made[0][0]["b64_json"]).startswith(b"\x89PNG")
    assert made[0] == made[1]
    assert made[0] != made[2]
    worker.stop()
