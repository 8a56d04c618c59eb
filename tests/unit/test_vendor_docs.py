"""The page about vendors says what their tables say."""

from __future__ import annotations

from scripts.vendor_docs import PAGE, render

from byzerllm.providers.registry import providers

TABLES = {p.type: p for p in providers().values()}


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == render(TABLES.values()), "run: python -m scripts.vendor_docs"


def test_every_type_alias_and_parameter_is_on_it() -> None:
    page = PAGE.read_text("utf-8")
    for vendor in TABLES.values():
        section = page.partition(f"\n## saas/{vendor.type}\n")[2].partition("\n## ")[0]
        assert all(f"`saas/{alias}`" in section for alias in vendor.aliases)
        assert all(f"| `saas.{name}` |" in section for name in vendor.params)
        assert all(f"| `{name}` |" in section for name in vendor.wires)
        assert "byzerllm deploy" in section
