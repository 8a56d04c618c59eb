"""Chat about sounds: a tiny Qwen2-Audio, deployed by the real command as the older tool's ``custom/qwen_voice``."""

from __future__ import annotations

import base64
import io
import json
import random
import subprocess
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.engines import python_of, with_engines
from tests.harness import Answer, Byzer, eventually

pytestmark = pytest.mark.timeout(600)
SCRIPT = Path(__file__).parents[2] / "scripts" / "tiny_hf_media.py"
START = 300.0  # seconds; imports alone take half a minute on a busy machine
TOKENS = 25  # of one second of sound
LONGEST = 2  # seconds that the model hears


@pytest.fixture(scope="module")
def byzer(make_byzer: Callable[..., Byzer]) -> Byzer:
    return with_engines(make_byzer(OMP_NUM_THREADS="1"), "transformers")


@pytest.fixture(scope="module")
def listener(byzer: Byzer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an instance that hears."""
    path = tmp_path_factory.mktemp("media") / "hearing"
    command = [python_of("transformers"), str(SCRIPT), str(path), "--kind", "hearing"]
    subprocess.run(command, capture_output=True, timeout=300, check=True)
    kind = ("--pretrained_model_type", "custom/qwen_voice", "--infer_backend", "transformers")
    byzer.run("deploy", "--model", "listener", *kind, "--model_path", path, timeout=START)
    return "listener"


def wav(seconds: float, seed: int = 0, rate: int = 16_000) -> str:
    """Noise, in base64."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(random.Random(seed).randbytes(2 * int(seconds * rate)))
    return base64.b64encode(out.getvalue()).decode()


def heard(data: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def ask(byzer: Byzer, name: str, *parts: dict[str, Any], **fields: Any) -> Answer:
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "what is it"}]}]
    body = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 12, "ignore_eos": True, **fields}
    return byzer.http("POST", "/v1/chat/completions", json.dumps(body).encode(), timeout=120)


def chat(byzer: Byzer, name: str, *parts: dict[str, Any], **fields: Any) -> Any:
    answer = ask(byzer, name, *parts, **fields)
    assert answer.status == 200, answer.body
    return answer.json()


def says(byzer: Byzer, name: str, *parts: dict[str, Any]) -> list[str]:
    """The tokens of an answer."""
    chosen = chat(byzer, name, *parts, logprobs=True)["choices"][0]["logprobs"]["content"]
    return [token["token"] for token in chosen]


def prompt_tokens(byzer: Byzer, name: str, *parts: dict[str, Any]) -> int:
    found: int = chat(byzer, name, *parts, max_tokens=1)["usage"]["prompt_tokens"]
    return found


def tokens_read(byzer: Byzer, name: str) -> int:
    found: int = byzer.json("stat", "--model", name, "--detail")["tokens"]["prompt"]
    return found


def test_it_hears(byzer: Byzer, listener: str) -> None:
    plain = prompt_tokens(byzer, listener)
    one = prompt_tokens(byzer, listener, heard(wav(1)))
    assert one >= plain + TOKENS
    assert one == prompt_tokens(byzer, listener, heard(wav(1, rate=44_100)))
    assert prompt_tokens(byzer, listener, heard(wav(1)), heard(wav(2))) >= one + 2 * TOKENS
    assert says(byzer, listener, heard(wav(1))) != says(byzer, listener, heard(wav(1, seed=1)))
    url = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{wav(1)}"}}
    assert says(byzer, listener, url) == says(byzer, listener, heard(wav(1)))
    assert prompt_tokens(byzer, listener, heard(wav(0.001))) > plain  # less than one token of sound


def test_chats_with_and_without_sounds_are_answered_together(byzer: Byzer, listener: str) -> None:
    asked = [(), *((heard(wav(1, seed=i)),) for i in range(3)), (heard(wav(0.5)), heard(wav(2, seed=4)))]
    apart = [says(byzer, listener, *parts) for parts in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(lambda parts: says(byzer, listener, *parts), asked)) == apart
    assert "cannot be batched" not in byzer.run("logs", "--model", listener).stdout


def test_an_answer_about_a_sound_is_streamed(byzer: Byzer, listener: str) -> None:
    whole = chat(byzer, listener, heard(wav(1)))["choices"][0]["message"]["content"]
    lines = ask(byzer, listener, heard(wav(1)), stream=True).body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == whole


def test_the_command_sends_a_file(byzer: Byzer, listener: str, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(base64.b64decode(wav(1)))
    needed = prompt_tokens(byzer, listener, heard(wav(1)))
    before = tokens_read(byzer, listener)
    asked = ("--query", "what is it", "--audio", tmp_path / "a.wav")
    assert byzer.run("query", "--model", listener, *asked).stdout.endswith("\n")  # streamed, which is not counted
    assert "has no effect" not in byzer.run("query", "--model", listener, *asked, "--no_stream").stderr
    eventually(lambda: tokens_read(byzer, listener) - before >= needed, 20, "its tokens are counted")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([heard(base64.b64encode(b"no sound").decode())], "The sound cannot be read"),
        ([heard(wav(0))], "The sound is empty"),
        ([heard(wav(LONGEST + 0.5))], "lasts 2.5 seconds; at its rate at most 2 are possible"),
        ([heard(wav(0.01))] * 121, "last longer than 3600 seconds, of which each takes at least 30"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "reads text and sounds"),
        ([{"type": "text", "text": "<|AUDIO|>"}], "no audio inputs were passed"),
    ],
)
def test_what_it_does_not_take_is_refused(
    byzer: Byzer, listener: str, parts: list[dict[str, Any]], message: str
) -> None:
    answer = ask(byzer, listener, *parts)
    error = answer.json()["error"]
    assert (answer.status, error["param"]) == (400, "messages")
    assert message in error["message"]
    assert chat(byzer, listener)["usage"]["completion_tokens"] == 12
