"""When an end is explained by what the kernel has killed, and where that is read."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from byzerllm.runtime.out_of_memory import RECENT, Kernel, Kills

if TYPE_CHECKING:
    from pathlib import Path

V2 = "0::/user.slice/app\n"
V1 = "9:name=systemd:/a\n4:cpu,memory:/docker/ab cd\n0::/\n"
EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill {}\noom_group_kill 0\n"


@pytest.fixture(autouse=True)
def _linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")


def test_one_kill_explains_one_end() -> None:
    kills = Kills(7)
    assert not kills.take(0)
    kills.notice(8, 10.0)
    assert kills.since(9.0)
    assert kills.take(9.0)
    assert not kills.take(9.0)
    assert not kills.since(9.0)


def test_several_kills_explain_as_many() -> None:
    kills = Kills(0)
    kills.notice(2, 10.0)
    assert [kills.take(0), kills.take(0), kills.take(0)] == [True, True, False]


def test_a_kill_from_before_the_start_explains_nothing() -> None:
    kills = Kills(0)
    kills.notice(1, 10.0)
    assert not kills.since(10.0)
    assert not kills.take(11.0)


def test_an_old_kill_explains_nothing() -> None:
    kills = Kills(0)
    kills.notice(1, 10.0)
    kills.notice(1, 10.0 + RECENT)
    assert kills.since(0)
    kills.notice(1, 10.1 + RECENT)
    assert not kills.since(0)


def test_a_counter_that_begins_anew_is_no_kill() -> None:
    kills = Kills(5)
    kills.notice(0, 10.0)
    assert not kills.since(0)
    kills.notice(1, 11.0)
    assert kills.since(0)


def machine(root: Path, files: dict[str, str]) -> Kernel:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Kernel.here(root)


@pytest.mark.parametrize("group", ["user.slice/app/", "user.slice/", ""])
def test_the_nearest_group_that_counts_is_asked(group: str, tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup/user.slice/app").mkdir(parents=True)
    files = {"proc/self/cgroup": V2, "proc/vmstat": "nr_free_pages 1\noom_kill 40\n"}
    assert machine(tmp_path, {**files, f"sys/fs/cgroup/{group}memory.events": EVENTS.format(4)}).kills() == 4


@pytest.mark.parametrize("folder", ["memory/docker/ab cd", "memory"])
def test_so_is_one_of_the_first_version(folder: str, tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": V1,
        f"sys/fs/cgroup/{folder}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        f"sys/fs/cgroup/{folder}/memory.limit_in_bytes": "4096\n",
    }
    kernel = machine(tmp_path, files)
    assert (kernel.kills(), kernel.limit()) == (3, 4096)


def test_without_a_group_it_is_the_machine(tmp_path: Path) -> None:
    kernel = machine(tmp_path, {"proc/vmstat": "nr_free_pages 1\n" * 9000 + "oom_kill 40\n"})
    assert kernel.kills() == 40
    assert kernel.limit() > 2**20


def test_where_nothing_counts_there_are_none(tmp_path: Path) -> None:
    assert Kernel.here(tmp_path).kills() == 0


def test_the_narrowest_limit_holds(tmp_path: Path) -> None:
    groups = "sys/fs/cgroup/user.slice"
    limits = {f"{groups}/app/memory.max": "max\n", f"{groups}/memory.max": "8192\n"}
    assert machine(tmp_path, {"proc/self/cgroup": V2, **limits}).limit() == 8192
