"""A transcript with the times of its segments and words, by a real Whisper of random weights."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines import Running, options_of, python_of

from byzerllm.engines import engine

pytestmark = pytest.mark.timeout(600)
SCRIPT = Path(__file__).parents[2] / "scripts" / "tiny_hf_media.py"
RATE, SECONDS = 16_000, 3
TYPE = "multipart/form-data; boundary=XyZ"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("media") / "whisper"
    command = [python_of("transformers"), str(SCRIPT), str(path), "--kind", "transcription"]
    subprocess.run(command, capture_output=True, timeout=300, check=True)
    running = Running(
        engine("transformers"), options_of("transformers", path, kind="whisper"), tmp_path_factory.mktemp("logs")
    )
    yield running.ready()
    running.stop(grace=0)


def transcript(worker: Running, *granularities: str) -> dict[str, Any]:
    facts = struct.pack("<HHIIHH", 1, 1, RATE, RATE, 1, 8)
    data = b"data" + struct.pack("<I", RATE * SECONDS) + bytes(range(0, 250, 10)) * (RATE * SECONDS // 25)
    body = b"WAVEfmt " + struct.pack("<I", 16) + facts + data
    parts = {
        'file"; filename="f.wav': b"RIFF" + struct.pack("<I", len(body)) + body,
        "response_format": b"verbose_json",
    }
    fields = [*parts.items(), *(("timestamp_granularities[]", one.encode()) for one in granularities)]
    form = b"".join(
        b'--XyZ\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)
        for name, value in fields
    )
    status, answer = worker.post("/v1/audio/transcriptions", form + b"--XyZ--\r\n", content_type=TYPE)
    assert status == 200, answer
    found: dict[str, Any] = json.loads(answer)
    return found


def test_words_and_segments_have_times(worker: Running) -> None:
    both = transcript(worker, "word", "segment")
    assert both["duration"] == SECONDS
    assert both["language"] in ("en", "zh")
    assert all(word.keys() == {"word", "start", "end"} for word in both["words"])
    for piece in (*both["words"], *both["segments"]):
        assert 0 <= piece["start"] <= piece["end"] <= SECONDS
    plain = transcript(worker)
    assert "words" not in plain
    assert [segment["text"] for segment in plain["segments"]] == [segment["text"] for segment in both["segments"]]
    words = transcript(worker, "word")
    assert words["words"] == both["words"] != []
    assert "segments" not in words
