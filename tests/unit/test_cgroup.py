"""The control groups that a process is in, as the kernel's files tell of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from byzerllm.runtime.cgroup import groups

if TYPE_CHECKING:
    from pathlib import Path

V1 = "9:name=systemd:/a\n4:cpu,memory:/docker/ab cd\n0::/\n"
V2 = "0::/user.slice/app\n"


@pytest.fixture(autouse=True)
def _linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def found(root: Path) -> list[tuple[str, int | None, int | None]]:
    top = root / "sys/fs/cgroup"
    return [(str(group.folder.relative_to(top)), group.limit(), group.used()) for group in groups(root)]


def test_the_groups_around_ours_restrict_it_too(tmp_path: Path) -> None:
    files = {
        "app/memory.max": "max\n",
        "app/memory.current": "700\n",
        "memory.max": "8192\n",
        "memory.current": "900\n",
    }
    write(tmp_path, {"proc/self/cgroup": V2, **{f"sys/fs/cgroup/user.slice/{k}": v for k, v in files.items()}})
    assert found(tmp_path) == [("user.slice/app", None, 700), ("user.slice", 8192, 900), (".", None, None)]


def test_in_a_container_the_own_group_lies_at_the_top(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": V2, "sys/fs/cgroup/memory.max": "8192\n"})
    assert found(tmp_path) == [(".", 8192, None)]


def test_the_first_version_has_other_names(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory/docker/ab cd/memory"
    stat = "active_file 1\ntotal_inactive_file 200\ntotal_active_file 100\n"
    files = {f"{folder}.limit_in_bytes": "4096\n", f"{folder}.usage_in_bytes": "1000\n", f"{folder}.stat": stat}
    write(tmp_path, {"proc/self/cgroup": V1, **files})
    assert found(tmp_path)[0] == ("memory/docker/ab cd", 4096, 700)


def test_the_pages_of_files_are_not_in_use_however_often_they_are_read(tmp_path: Path) -> None:
    stat = "anon 300\nfile 700\nshmem 50\nactive_file 500\ninactive_file 150\nworkingset_refault_file 9\n"
    write(tmp_path, {"sys/fs/cgroup/memory.current": "1000\n", "sys/fs/cgroup/memory.stat": stat})
    assert found(tmp_path) == [(".", None, 350)]


def test_elsewhere_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"sys/fs/cgroup/memory.max": "8192\n"})
    monkeypatch.setattr(sys, "platform", "darwin")
    assert groups(tmp_path) == []
