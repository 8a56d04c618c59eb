"""The scripts that the README names first."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_the_demo_deploys_two_instances_and_calls_both_and_cleans_up() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "demo"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=290, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "Model mock_chat deployed successfully" in lines
    assert "Model local_chat deployed successfully" in lines
    assert any(line.startswith("Hello from a model that runs on your own machine.") for line in lines)
    assert '    "total_workers": 2,' in lines
    assert '    "total_workers": 1,' in lines
    assert not (ROOT / ".demo").exists()


def test_the_demo_refuses_what_it_does_not_know() -> None:
    done = subprocess.run([ROOT / "scripts" / "demo", "--nope"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "scripts/demo [--gguf PATH] [--keep]" in done.stderr
