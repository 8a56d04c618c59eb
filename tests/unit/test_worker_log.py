from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from byzerllm.runtime import worker_log
from byzerllm.runtime.worker_log import Follower, WorkerLog

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def log(tmp_path: Path) -> WorkerLog:
    return WorkerLog(tmp_path / "logs" / "w.log")


def say(log: WorkerLog, text: str, *, start: bool = False) -> None:
    if start:
        os.close(log.open_for_start("w"))
    with log.path.open("ab") as file:
        file.write(text.encode())


def test_only_its_user_can_read_it(log: WorkerLog) -> None:
    say(log, "", start=True)
    assert log.path.stat().st_mode & 0o777 == 0o600
    assert log.path.parent.stat().st_mode & 0o777 == 0o700


def test_last_words_are_those_of_the_latest_start(log: WorkerLog) -> None:
    assert log.last_words() == ""
    say(log, "of the first\n", start=True)
    say(log, "", start=True)
    assert log.last_words() == ""
    say(log, "one\ntwo\n")
    assert log.last_words() == "one\ntwo"


def test_last_words_are_few(log: WorkerLog) -> None:
    say(log, "".join(f"line {n}\n" for n in range(1000)), start=True)
    assert log.last_words().splitlines() == [f"line {n}" for n in range(600, 1000)]
    say(log, "".join(f"{n} {'x' * 10_000}\n" for n in range(10)))
    words = log.last_words()
    assert len(words) <= worker_log.LAST_WORDS_BYTES
    assert words.splitlines()[-1].startswith("9 x")
    say(log, "y" * 100_000)
    assert set(log.last_words()) == {"y"}


def test_a_large_log_is_put_aside_at_the_next_start(log: WorkerLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_log, "ROTATE_AT", 100)
    say(log, "old\n" * 100, start=True)
    say(log, "new\n", start=True)
    assert b"old" not in log.path.read_bytes()
    assert log.path.with_name("w.log.1").read_bytes().count(b"old") == 100


@pytest.mark.parametrize("lines", [0, 1, 3, 5000, 10**6])
def test_tail_counts_lines(log: WorkerLog, lines: int) -> None:
    written = [f"{n} {'x' * 30}\n" for n in range(5000)]
    log.path.parent.mkdir()
    log.path.write_text("".join(written))
    tail = Follower(log).tail(lines)
    assert tail == "".join(written[-lines:] if lines else []).encode()


def test_tail_of_nothing_is_none(log: WorkerLog) -> None:
    assert Follower(log).tail(10) is None


def test_follower_goes_on_after_the_log_is_emptied_or_put_aside(log: WorkerLog) -> None:
    say(log, "a\nb\n", start=True)
    follower = Follower(log)
    assert follower.tail(1) == b"b\n"
    assert follower.more() == b""
    say(log, "c\n")
    assert follower.more() == b"c\n"
    os.truncate(log.path, 0)
    say(log, "d\n")
    assert follower.more() == b"d\n"
    log.path.replace(log.path.with_name("w.log.1"))
    assert follower.more() == b""
    say(log, "e\n")
    assert follower.more() == b"e\n"
