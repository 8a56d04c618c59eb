"""DeepSpeed with a model divided between two processes."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from scripts import tiny_hf
from scripts.tiny_gguf import Shape
from tests.engines import START, Running, options_of, run_checks
from tests.fixtures_models import SAY
from tests.harness import eventually

from byzerllm.engines import engine

if TYPE_CHECKING:
    from byzerllm.engines.base import EngineOptions

LOCAL = "127.0.0.1"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> EngineOptions:
    path = tmp_path_factory.mktemp("hf") / "model"
    params: dict[str, Any] = {"backend.tp_size": "2"}
    tiny_hf.write(path, say=SAY, shape=Shape(hidden=256, heads=4, kv_heads=2, ctx=32768))
    return options_of("deepspeed", path, **params)


def outward() -> str:
    """A network interface that others can reach, or this machine's own where there is no such."""
    found = psutil.net_if_addrs().items()
    reached = [name for name, all_ in found for one in all_ if one.family == socket.AF_INET and one.address != LOCAL]
    return reached[0] if reached else "lo"


@pytest.fixture(scope="module")
def worker(options: EngineOptions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    found = engine("deepspeed")
    found.check(options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", outward())
        worker = Running(found, options, tmp_path_factory.mktemp("logs"))
    yield worker.ready()
    worker.stop(grace=0)


def test_each_rank_holds_a_part(worker: Running) -> None:
    log = Path(worker.process.log).read_text("utf-8")
    parts = re.findall(r"rank (\d) holds ([\d,]+) of ([\d,]+) parameters", log)
    assert sorted(rank for rank, _, _ in parts) == ["0", "1"]
    for _, part, whole in parts:
        assert int(part.replace(",", "")) < 0.8 * int(whole.replace(",", ""))


def test_it_says_what_the_whole_model_says(worker: Running) -> None:
    assert worker.says() == SAY
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: worker.says(), range(8))) == [SAY] * 8


def test_the_ranks_meet_on_this_machine_only(worker: Running) -> None:
    found = [link for process in worker.family() for link in process.net_connections("inet")]
    assert len(found) > 2
    assert {link.laddr.ip for link in found if link.laddr} == {LOCAL}


def test_all_ranks_stop_when_the_client_goes_away(worker: Running) -> None:
    with worker.stream(ignore_eos=True, max_tokens=30_000):
        pass

    def quiet() -> bool:
        before = worker.seconds_of_work()
        psutil.cpu_percent(0.5)
        return worker.seconds_of_work() - before < 0.15

    eventually(quiet, 30, "the end of its work")
    assert worker.says() == SAY


def test_a_rank_that_dies_ends_all(worker: Running) -> None:
    family = worker.family()
    os.kill(family[1].pid, signal.SIGKILL)
    ended = eventually(lambda: worker.runtime.poll(worker.process), 30, "the end of the engine")
    assert ended is not None
    assert ended.code == 1
    assert "rank 1 of the model ended" in str(engine("deepspeed").cause(ended.tail))
    assert not psutil.wait_procs(family, timeout=30)[1]


def test_the_first_rank_takes_the_others_with_it(options: EngineOptions, tmp_path: Path) -> None:
    worker = Running(engine("deepspeed"), options, tmp_path).ready()
    family = worker.family()
    family[0].kill()
    assert not psutil.wait_procs(family[1:], timeout=30)[1]
    worker.stop(grace=0)


def test_a_start_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # torch keeps it for the next start
    tiny_hf.write(tmp_path / "model", say=SAY, shape=Shape(hidden=256, heads=4, kv_heads=1))
    params: dict[str, Any] = {"backend.tp_size": "2"}
    worker = Running(engine("deepspeed"), options_of("deepspeed", tmp_path / "model", **params), tmp_path)
    ended = eventually(lambda: worker.runtime.poll(worker.process), START, "the end of the engine")
    assert ended is not None
    assert "backend.tp_size=2 does not divide the model's 1 key/value heads" in ended.tail
    worker.stop(grace=0)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_with_its_kernels_a_model_says_what_it_says_without() -> None:
    assert run_checks("deepspeed", "kernel_checks.py") == "whole"
