"""The help texts are complete, in both languages."""

from __future__ import annotations

import importlib

import pytest

from byzerllm.cli import lang
from byzerllm.cli.flags import COMMON


@pytest.mark.parametrize("command", sorted(lang.COMMANDS))
def test_every_flag_is_explained_in_both_languages(command: str) -> None:
    module = importlib.import_module(f"byzerllm.cli.{command}")
    for flag in (*module.FLAGS, *COMMON):
        english, chinese = lang.FLAGS.get(f"{command}.{flag.name}") or lang.FLAGS[flag.name]
        assert english.isascii()
        assert not chinese.isascii()


def test_no_text_is_left_over() -> None:
    used = {flag.name for flag in COMMON}
    for command in lang.COMMANDS:
        used |= {flag.name for flag in importlib.import_module(f"byzerllm.cli.{command}").FLAGS}
    assert used == set(lang.FLAGS)
