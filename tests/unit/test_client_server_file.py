"""``server.json`` as the client reads it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from byzerllm.client.server_file import (
    prepare_folder,
    read_server_file,
    recorded_server,
    write_server_file,
)
from byzerllm.errors import InvalidInput, ServerUnavailable

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = {
    "url": "http://127.0.0.1:8765",
    "token": "t0ken",
    "pid": 123,
    "supervisor_pid": 122,
    "runtime": "embedded",
    "version": "1.0.0",
    "home": "/home/u/.byzerllm",
    "started_at": 1700000000.0,
}


def test_reads_what_a_server_writes(tmp_path: Path) -> None:
    file = tmp_path / "server.json"
    file.write_text(json.dumps({**CONTENT, "added_later": 1}))
    info = read_server_file(file)
    assert info is not None
    assert (info.address, info.pid, info.token) == (("127.0.0.1", 8765), 123, "t0ken")
    assert info.ray_address == ""
    assert "t0ken" not in repr(info)


def test_what_is_kept_is_read_again_and_is_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "server.json"
    file.write_text(json.dumps({**CONTENT, "ray_address": "h:1"}))
    info = read_server_file(file)
    assert info is not None
    kept = tmp_path / "ray" / "server.json"
    prepare_folder(kept.parent)
    kept.write_text("an older one")
    write_server_file(kept, info)
    assert read_server_file(kept) == info
    assert kept.stat().st_mode & 0o777 == 0o600
    assert list(kept.parent.iterdir()) == [kept]


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written: not a directory"):
        prepare_folder(tmp_path / "file" / "home")


def test_no_file_is_no_server(tmp_path: Path) -> None:
    assert read_server_file(tmp_path / "server.json") is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", json.dumps({**CONTENT, "url": "http://127.0.0.1:port"}), json.dumps({**CONTENT, "url": 5})],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "server.json"
    file.write_text(text)
    with pytest.raises(ServerUnavailable, match=r"server\.json is damaged") as caught:
        read_server_file(file)
    assert caught.value.hint
    assert recorded_server(file) is None


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailable, match="Is a directory"):
        read_server_file(tmp_path)
