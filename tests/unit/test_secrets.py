"""Values of ``env:NAME`` parameters: by instance, over the server's own, and through a crash."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from byzerllm.control.secrets import FileMemory, Secrets


@pytest.fixture
def fd() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


def test_an_instance_sees_its_own_values_over_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "server")
    monkeypatch.setenv("B", "server")
    secrets = Secrets(None)
    secrets.put("m", {"A": "mine"})
    environ = secrets.environ("m")
    assert (environ["A"], environ["B"]) == ("mine", "server")
    assert secrets.environ("other")["A"] == "server"


def test_what_a_later_command_does_not_send_stays() -> None:
    secrets = Secrets(None)
    secrets.put("m", {"A": "1", "B": "2"})
    secrets.put("m", {"B": "3"})
    secrets.put("m", {})
    assert {k: secrets.environ("m")[k] for k in "AB"} == {"A": "1", "B": "3"}


def test_a_removed_instances_values_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A", raising=False)
    secrets = Secrets(None)
    secrets.put("m", {"A": "1"})
    secrets.reset("m", {})
    secrets.reset("m", {})
    assert "A" not in secrets.environ("m")


def test_the_next_server_gets_them_through_the_file_without_a_name(fd: int) -> None:
    secrets = Secrets(FileMemory(fd))
    secrets.put("long", {"A": "x" * 5000})
    secrets.put("m", {"KEY": "sk-é"})
    secrets.reset("long", {})
    after = Secrets(FileMemory(fd))
    assert after.environ("m")["KEY"] == "sk-é"
    assert "A" not in after.environ("long")
    after.reset("m", {})
    assert b"sk-" not in os.pread(fd, 10_000, 0)


def test_a_change_that_fails_leaves_the_values_as_they_were() -> None:
    secrets = Secrets(None)
    secrets.put("m", {"KEY": "old"})
    before = secrets.put("m", {"KEY": "new", "MORE": "x"})
    secrets.reset("m", before)
    assert secrets.environ("m")["KEY"] == "old"
    assert "MORE" not in secrets.environ("m")
    secrets.reset("m", before)  # nothing to do
    assert secrets.environ("m")["KEY"] == "old"
