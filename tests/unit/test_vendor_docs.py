"""The page about vendors says what their tables say."""

from __future__ import annotations

import pytest
from scripts.vendor_docs import PAGE, render

from byzerllm.providers.registry import providers

TABLES = {p.type: p for p in providers().values()}


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == render(TABLES.values()), "run: python -m scripts.vendor_docs"


def section(kind: str) -> str:
    return PAGE.read_text("utf-8").partition(f"\n## saas/{kind}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("kind", TABLES)
def test_every_type_says_that_it_takes_several_keys(kind: str) -> None:
    rows = [line for line in section(kind).splitlines() if line.startswith("| `saas.api_key` |")]
    assert [row for row in rows if "several with commas between" in row]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("openai", "saas.api_key=env:OPENAI_API_KEY saas.model=MODEL"),
        ("claude", "saas.api_key=env:CLAUDE_API_KEY saas.model=MODEL"),
        ("siliconflow", "saas.api_key=env:SILICONFLOW_API_KEY saas.model=MODEL"),
        ("ollama", "saas.model=MODEL"),
        ("pangu", "saas.api_url=https://gateway.example/chat"),
    ],
)
def test_the_example_asks_for_what_is_needed_and_no_old_model(kind: str, words: str) -> None:
    assert section(kind).endswith(f"--infer_params {words}\n```\n")


def test_what_a_parameter_or_a_missing_model_means_is_said() -> None:
    assert "| `saas.api_key` | required for `openai` |" in section("qianfan"), "not with an access_token"
    assert "Without `saas.model` the instance's task is image" in section("siliconflow")
    assert "Without `saas.model` the instance's task is speech, with `volcano_tts`" in section("volcengine")


def test_every_type_alias_and_parameter_is_on_it() -> None:
    for vendor in TABLES.values():
        text = section(vendor.type)
        assert all(f"`saas/{alias}`" in text for alias in vendor.aliases)
        assert all(f"| `saas.{name}` |" in text for name in vendor.params)
        assert all(f"| `{name}`" in text for name in vendor.wires)
        assert "byzerllm deploy" in text
