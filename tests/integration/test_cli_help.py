"""Help in a real process: in both languages, and quick because it loads almost nothing."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from byzerllm.cli import lang

SLOW = {
    "uvicorn",
    "uvloop",
    "httpx",
    "psutil",
    "yaml",
    "asyncio",
    "ray",
    "torch",
    "prometheus_client",
    "multiprocessing",
}


def run(*words: str, lang: str = "C.UTF-8") -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "LANG": lang, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-X", "importtime", "-m", "byzerllm", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, encoding="utf-8", timeout=30)


def imported(result: subprocess.CompletedProcess[str]) -> set[str]:
    lines = (line for line in result.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands_and_loads_nothing_slow(words: list[str]) -> None:
    result = run(*words)
    assert result.returncode == 0
    for command in lang.COMMANDS:
        assert f"\n  {command} " in result.stdout
    assert not imported(result) & (SLOW | {"msgspec", "http.client", "argparse"})


@pytest.mark.parametrize("command", sorted(lang.COMMANDS))
def test_a_commands_help_names_its_flags_and_loads_nothing_slow(command: str) -> None:
    result = run(command, "--help")
    assert result.returncode == 0
    for flag in importlib.import_module(f"byzerllm.cli.{command}").FLAGS:
        name = flag.kind.options["metavar"] if flag.positional else f"--{flag.name}"
        assert ("|".join(flag.choices) or name) in result.stdout
    assert "--file" in result.stdout
    assert "--ray_address" in result.stdout
    assert not imported(result) & SLOW


def test_help_in_chinese() -> None:
    assert "部署一个模型实例" in run("--help", lang="zh_CN.UTF-8").stdout
    assert "模型实例名称" in run("deploy", "--help", lang="zh_CN.UTF-8").stdout


def test_without_a_command_the_overview_is_usage_and_exit_code_2() -> None:
    result = run()
    assert (result.returncode, result.stdout) == (2, "")
    assert "usage: byzerllm" in result.stderr
