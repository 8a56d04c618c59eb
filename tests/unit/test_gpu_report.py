"""What ``scripts/test_gpu`` keeps and shows."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from scripts import test_gpu

REPORT = """<testsuites><testsuite>
<testcase name="test_a[transformers]"/>
<testcase name="test_b[transformers]"><failure message="no"/></testcase>
<testcase name="test_c[transformers]"><error message="no"/></testcase>
</testsuite></testsuites>"""
RAN: dict[str, Any] = {
    "name": "transformers",
    "versions": {"torch": "2.11.0"},
    "passed": 9,
    "failed": [],
    "left_out": ["images_are_made (diffusers is not installed)"],
    "seconds": 80,
    "gpu": {"name": "NVIDIA H200", "bytes": 150 * 10**9, "capability": "9.0", "cuda": "13.0"},
}


def test_passed_and_failed_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "report.xml"
    assert test_gpu.read(path)["failed"]
    path.write_text(REPORT)
    assert test_gpu.read(path) == {"passed": 1, "failed": ["test_b[transformers]", "test_c[transformers]"]}


def test_what_needs_a_missing_module_is_left_out() -> None:
    assert test_gpu.chosen("vllm", [], "") == "vllm"
    assert test_gpu.chosen("transformers", ["soundfile"], "a or b") == "transformers and not speech and (a or b)"


@pytest.mark.parametrize(
    ("given", "kept"),
    [({}, True), ({"k": "stream"}, False), ({"engine": ["vllm"]}, False), ({"device": "cpu"}, False)],
)
def test_only_what_all_tests_say_goes_to_the_page(given: dict[str, Any], kept: bool) -> None:
    args = Namespace(**{"device": "cuda", "k": "", "engine": None, "out": None, **given})
    assert test_gpu.place(args) == (test_gpu.OUTCOME if kept else None)
    args.out = Path("elsewhere")
    assert test_gpu.place(args) == args.out


def test_the_page_names_the_gpu_and_what_was_not_run() -> None:
    engines = [RAN, {"name": "vllm", "not_run": "vllm not installed"}]
    shown = "\n".join(
        test_gpu.section(
            {"date": "2026-01-02", "device": "cuda", "driver": "580.1", "python": "3.12.3", "engines": engines}
        )
    )
    assert "one NVIDIA H200 (140 GiB, driver 580.1), Python 3.12.3" in shown
    assert "| `transformers` | torch 2.11.0 | 9 | 0 | images_are_made (diffusers is not installed) | 80 |" in shown
    assert "| `vllm` | | | | not run: vllm not installed | |" in shown
