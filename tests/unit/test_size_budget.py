"""The size budget finds what is too long, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.size_budget import FILE_LINES, FUNCTION_LINES, main


def write(root: Path, name: str, function_lines: int, more_lines: int = 0) -> None:
    body = ["def f() -> None:", *["    pass"] * (function_lines - 1), *["x = 1"] * more_lines]
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(body) + "\n")


def test_files_and_functions_at_the_budget_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "src/a.py", FUNCTION_LINES, FILE_LINES - FUNCTION_LINES)
    write(tmp_path, "tests/b.py", 2)
    assert main(tmp_path) == 0
    assert "longest 400 of 400" in capsys.readouterr().out


def test_each_offender_is_named_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "src/a.py", FUNCTION_LINES + 1)
    write(tmp_path, "scripts/deep/b.py", 2, FILE_LINES)
    assert main(tmp_path) == 1
    named = capsys.readouterr().out.splitlines()[2:]
    assert named == [
        "scripts/deep/b.py: 402 lines, the budget is 400",
        "src/a.py:1 f: 51 lines, the budget is 50",
    ]
