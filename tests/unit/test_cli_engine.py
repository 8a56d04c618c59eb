"""What ``byzerllm engine list`` shows."""

from __future__ import annotations

import pytest

from byzerllm.cli import engine


@pytest.mark.parametrize(
    ("nvidia", "report", "shown"),
    [
        (False, {"device": "cpu"}, "yes, on the CPU"),
        (True, {"device": "cuda"}, "yes, on the GPU"),
        (True, {"device": "cpu"}, "yes, on the CPU only: its build cannot use this machine's GPU"),
        (True, {"device": "", "obstacle": "it runs on linux"}, "no: it runs on linux"),
    ],
)
def test_where_an_engine_runs(
    nvidia: bool, report: dict[str, str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "has_nvidia", lambda: nvidia)
    assert engine._runs_here({"obstacle": "", **report}) == shown
