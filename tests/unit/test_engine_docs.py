"""The page about engines says what their tables say."""

from __future__ import annotations

import pytest
from scripts.engine_docs import PAGE, render

from byzerllm.engines import names
from byzerllm.engines.recipes import TESTED


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == render(), "run: python -m scripts.engine_docs"


@pytest.mark.parametrize("name", names())
def test_every_engine_is_described_with_its_parameters(name: str) -> None:
    section = PAGE.read_text("utf-8").partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert "Parameters that it knows:\n\n`" in section


def test_every_tested_version_is_there_with_its_reason() -> None:
    page = PAGE.read_text("utf-8")
    assert all(f"| `{package}` | {pin.version} | {pin.reason} |" in page for package, pin in TESTED.items())
