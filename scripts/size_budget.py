"""Refuse files and functions that have grown too long to be read at one go.

Names every offender; exit code 1 if there is one. Lines are physical lines: a function counts from its ``def``
to its last line, docstring included.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_LINES = 400
FUNCTION_LINES = 50
FOLDERS = ("src", "tests", "benchmarks", "scripts")

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Measured:
    """One file or function, where it starts and how many lines it has."""

    where: str
    lines: int


def functions(path: str, tree: ast.AST) -> Iterator[Measured]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Measured(f"{path}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1)


def measure(root: Path) -> tuple[list[Measured], list[Measured]]:
    """All files and all functions under the folders, in order of path."""
    files: list[Measured] = []
    found: list[Measured] = []
    for path in sorted(p for folder in FOLDERS for p in (root / folder).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        source = path.read_text("utf-8")
        files.append(Measured(name, len(source.splitlines())))
        found.extend(functions(name, ast.parse(source, name)))
    return files, found


def summary(what: str, measured: list[Measured], budget: int) -> str:
    lines = [m.lines for m in measured]
    p90 = quantiles(lines, n=10, method="inclusive")[-1]
    return f"{len(lines)} {what}: median {median(lines):g}, p90 {p90:g}, longest {max(lines)} of {budget}"


def main(root: Path = ROOT) -> int:
    files, found = measure(root)
    print(summary("files", files, FILE_LINES))
    print(summary("functions", found, FUNCTION_LINES))
    over = [(m, FILE_LINES) for m in files if m.lines > FILE_LINES]
    over += [(m, FUNCTION_LINES) for m in found if m.lines > FUNCTION_LINES]
    for m, budget in over:
        print(f"{m.where}: {m.lines} lines, the budget is {budget}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
