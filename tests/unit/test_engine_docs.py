"""The page about engines says what their tables say."""

from __future__ import annotations

import re

import pytest
from scripts.engine_docs import PAGE, render

from byzerllm.engines import engine, names
from byzerllm.engines.recipes import TESTED
from byzerllm.engines.vllm_arguments import FORMS
from byzerllm.spec import DeploymentSpec


def section(name: str) -> str:
    return PAGE.read_text("utf-8").partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == render(), "run: python -m scripts.engine_docs"


@pytest.mark.parametrize("name", names())
def test_every_parameter_has_a_row_that_says_all_of_it(name: str) -> None:
    table = section(name).partition("| parameter | values | default | meaning |\n|---|---|---|---|\n")[2]
    rows = [re.split(r"(?<!\\) ?\| ?", row) for row in table.partition("\n\n")[0].splitlines()]
    assert rows
    for row in rows:
        assert len(row) == 6, row
        assert all(row[1:-1]), row
        assert not row[4].endswith("."), row


def test_every_argument_of_vllm_is_named_once() -> None:
    named = re.findall(r"^\| `backend\.(\w+)`", section("vllm"), re.MULTILINE)
    named += re.findall(r"`(\w+)`", section("vllm").partition("<details>")[2].partition("</details>")[0])
    assert sorted(named) == sorted(FORMS)


@pytest.mark.parametrize("name", names())
def test_the_table_has_the_tasks_of_each_engine(name: str) -> None:
    row = next(line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| `{name}` | "))
    spec = DeploymentSpec(name="m", pretrained_model_type="custom/auto", model_path="/m", infer_backend=name)
    assert set(engine(name).parse(spec).tasks) <= set(row.split(" | ")[3].split(", "))


def test_every_package_without_a_fixed_version_is_named() -> None:
    page = PAGE.read_text("utf-8").partition("have no fixed version")[2].partition("\n## ")[0]
    assert all(f"`{package}`" in page for package in ("vllm", "peft", "diffusers", "bitsandbytes", "llguidance"))
    assert not any(f"`{package}`" in page for package in TESTED)


def test_every_tested_version_is_there_with_its_reason() -> None:
    page = PAGE.read_text("utf-8")
    assert all(f"| `{package}` | {pin.version} | {pin.reason} |" in page for package, pin in TESTED.items())
