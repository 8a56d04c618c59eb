"""The engine funasr: a tiny SenseVoice, deployed by the real command, writes down what it hears."""

from __future__ import annotations

import contextlib
import http.client
import io
import math
import shutil
import subprocess
import wave
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from tests.engines import python_of, with_engines
from tests.harness import Answer, Byzer, eventually

pytestmark = pytest.mark.timeout(600)
SCRIPT = Path(__file__).parents[2] / "scripts" / "tiny_funasr.py"
START = 300.0  # seconds; imports alone take half a minute on a busy machine
TYPE = ("--pretrained_model_type", "custom/sensevoice")
# funasr would fetch, install and run these: what a folder says of itself is not to be believed.
TRAPS = "trust_remote_code: true\nremote_code: {code}\nvad_model: fsmn-vad\npunc_model: ct-punc\nspk_model: cam++\n"


def make(path: Path, *more: str) -> Path:
    done = subprocess.run(
        [python_of("funasr"), str(SCRIPT), str(path), *more], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make(tmp_path_factory.mktemp("funasr") / "sensevoice")
    with (path / "config.yaml").open("a") as config:
        config.write(TRAPS.format(code=path / "code_of_its_own.py"))
    (path / "requirements.txt").write_text("no-such-package-anywhere\n")
    (path / "code_of_its_own.py").write_text(f"open({str(path / 'was_run')!r}, 'w')\n")
    return path


@pytest.fixture(scope="module")
def vad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("funasr") / "vad", "--vad")


@pytest.fixture(scope="module")
def byzer(make_byzer: Callable[..., Byzer]) -> Byzer:
    return with_engines(make_byzer(OMP_NUM_THREADS="1"), "funasr")


@pytest.fixture(scope="module")
def plain(byzer: Byzer, model: Path) -> str:
    """The name of an instance as scripts of the older tool make it."""
    words = ("--model_path", model, "--infer_backend", "transformers", "--infer_params", "trust_remote_code=true")
    done = byzer.run("deploy", "--model", "plain", *TYPE, *words, timeout=START)
    assert "infer_backend: funasr (the type custom/sensevoice)\n" in done.stderr
    assert "trust_remote_code has no effect: funasr has SenseVoice's code itself." in done.stderr
    return "plain"


@pytest.fixture(scope="module")
def cutting(byzer: Byzer, model: Path, vad: Path) -> str:
    """One that cuts what it hears into seconds."""
    params = (f"vad_model={vad}", "vad_kwargs.max_single_segment_time=1000", "merge_vad=false", "use_itn=false")
    auto = ("--pretrained_model_type", "custom/auto", "--model_path", model)
    done = byzer.run("deploy", "--model", "cutting", *auto, "--infer_params", *params, timeout=START)
    assert "infer_backend: funasr (a SenseVoice model)\n" in done.stderr
    return "cutting"


def sound(seconds: float, hertz: float = 1000, rate: int = 16_000) -> bytes:
    """A tone as a WAV file."""
    steps = (int(16_000 * math.sin(2 * math.pi * hertz * i / rate)) for i in range(int(seconds * rate)))
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"".join(step.to_bytes(2, "little", signed=True) for step in steps))
    return out.getvalue()


def form(file: bytes, **fields: str) -> tuple[bytes, str]:
    """A multipart body and its content type."""
    line = b"--boundary\r\nContent-Disposition: form-data; name="
    parts = [line + f'"{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    parts.append(line + b'"file"; filename="a.wav"\r\n\r\n' + file + b"\r\n--boundary--\r\n")
    return b"".join(parts), "multipart/form-data; boundary=boundary"


def transcribe(byzer: Byzer, name: str, file: bytes, **fields: str) -> Answer:
    body, content_type = form(file, model=name, **fields)
    headers = {"content-type": content_type}
    return byzer.http("POST", "/v1/audio/transcriptions", body, headers=headers, timeout=120)


def text(byzer: Byzer, name: str, file: bytes, **fields: str) -> str:
    answer = transcribe(byzer, name, file, **fields)
    assert answer.status == 200, answer.body
    found: str = answer.json()["text"]
    return found


def test_it_writes_what_it_hears_at_any_rate(byzer: Byzer, plain: str) -> None:
    assert text(byzer, plain, sound(1)) == "beep😊"
    assert text(byzer, plain, sound(1, rate=44_100)) == "beep😊"
    assert text(byzer, plain, sound(1, hertz=200)) == "hush😊"
    assert text(byzer, plain, sound(1), language="zh") == "zh beep😊"
    assert text(byzer, plain, sound(0.2)) == "beep😊"
    assert text(byzer, plain, sound(0.0002)) == "hush😊"


def test_nothing_of_the_folder_was_run(byzer: Byzer, plain: str, model: Path) -> None:
    assert byzer.http("GET", f"/v1/models/{plain}").json()["task"] == "transcription"
    assert not (model / "was_run").exists()


def test_the_command_hears_a_file(byzer: Byzer, plain: str, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(sound(1))
    assert byzer.run("query", "--model", plain, "--audio", tmp_path / "a.wav").stdout == "beep😊\n"


def test_the_command_says_what_to_leave_out(byzer: Byzer, plain: str, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(sound(1))
    done = byzer.run("query", "--model", plain, "--audio", tmp_path / "a.wav", "--query", "Ann", code=2)
    assert "leave --query out beside --audio" in done.stderr


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"language": "fr"}, "language"),
        ({"prompt": "a"}, "prompt"),
        ({"temperature": "0.5"}, "temperature"),
        ({"response_format": "srt"}, "response_format"),
        ({"response_format": "verbose_json", "timestamp_granularities[]": "word"}, "response_format"),
    ],
)
def test_what_it_cannot_do_is_refused(byzer: Byzer, plain: str, fields: dict[str, str], param: str) -> None:
    answer = transcribe(byzer, plain, sound(1), **fields)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)


def test_what_is_no_sound_or_too_long_is_refused(byzer: Byzer, plain: str) -> None:
    for bad in (b"no sound", sound(0)):
        assert transcribe(byzer, plain, bad).status == 400
    answer = transcribe(byzer, plain, sound(301, rate=4000))
    assert answer.status == 400
    assert "301 seconds of sound; 300 are possible without vad_model" in answer.json()["error"]["message"]


def test_a_long_recording_is_cut(byzer: Byzer, cutting: str) -> None:
    assert text(byzer, cutting, sound(3)).count("beep") == 3
    assert text(byzer, cutting, sound(1)).startswith("raw beep")
    assert text(byzer, cutting, sound(301, rate=4000)).count("beep") > 250
    assert text(byzer, cutting, sound(0.01)) == ""


def test_a_client_that_leaves_ends_the_work(byzer: Byzer, plain: str) -> None:
    (process,) = byzer.json("stat", "--model", plain, "--detail")["processes"]
    worker = psutil.Process(process["pid"])

    def seconds() -> float:
        return worker.cpu_times().user + worker.cpu_times().system

    long = sound(240, rate=4000)
    text(byzer, plain, long)  # the first costs more
    start = seconds()
    text(byzer, plain, long)
    whole, start = seconds() - start, seconds()
    body, content_type = form(long, model=plain)
    key = {"Content-Type": content_type, "Authorization": f"Bearer {byzer.token}"}
    address = urlsplit(byzer.url)
    with contextlib.closing(http.client.HTTPConnection(address.hostname or "", address.port)) as connection:
        connection.request("POST", "/v1/audio/transcriptions", body, key)
        eventually(lambda: seconds() > start + whole / 4, 60, "it works")
    assert text(byzer, plain, sound(1)) == "beep😊"  # one after the other: what came before has ended
    assert seconds() - start < 0.8 * whole


def test_weights_that_lack_something_are_no_model(byzer: Byzer, model: Path, tmp_path: Path) -> None:
    path = shutil.copytree(model, tmp_path / "broken")
    drop = "import sys, torch; f = torch.load(sys.argv[1]); del f['embed.weight']; torch.save(f, sys.argv[1])"
    subprocess.run([python_of("funasr"), "-c", drop, str(path / "model.pt")], check=True, timeout=120)
    failed = byzer.run("deploy", "--model", "broken", *TYPE, "--model_path", path, code=1, timeout=START)
    assert "the weights lack 1 tensors of the model, the first is embed.weight" in failed.stderr
