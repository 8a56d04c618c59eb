"""What documents say is what the code does: version, folders, commands, flags, variables and examples."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from byzerllm import __version__
from byzerllm.cli import arguments, lang
from byzerllm.cli.deploy import build_spec
from byzerllm.cli.flags import COMMON, Flag
from byzerllm.engines import engine
from byzerllm.providers.parse import parse
from byzerllm.providers.schema import COMMON as SAAS_COMMON
from byzerllm.spec import check_spec

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "byzerllm"
MODULES = sorted(SOURCE.rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


# Version and folders


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    found = re.search(r"^## \[(\d+\.\d+\.\d+)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert found
    assert found[1] == __version__


def test_every_package_has_its_line_in_the_architecture() -> None:
    described = set(re.findall(r"`([\w/]+)/`", read("ARCHITECTURE.md")))
    assert {p.parent.name for p in MODULES if p.parent != SOURCE} <= described


# Code


def offenders(is_offence: Callable[[ast.AST], bool]) -> list[str]:
    found = []
    for path in MODULES:
        name = path.relative_to(SOURCE).as_posix()
        found += [f"{name}:{getattr(n, 'lineno', 0)}" for n in ast.walk(ast.parse(path.read_text())) if is_offence(n)]
    return found


def test_the_clock_is_read_only_where_the_guard_of_unit_tests_sees_it() -> None:
    """``import time`` and ``time.monotonic()``; a name imported from ``time`` would escape the guard."""
    assert offenders(lambda n: isinstance(n, ast.ImportFrom) and n.module in ("time", "datetime")) == []


def test_only_the_command_line_writes_to_stdout() -> None:
    found = offenders(lambda n: isinstance(n, ast.Name) and n.id == "print")
    assert [where for where in found if not where.startswith("cli/")] == []


# Environment variables and files


# What our own processes tell each other; nobody sets these by hand.
INTERNAL = {"BYZERLLM_LISTEN_FD", "BYZERLLM_SECRETS_FD", "BYZERLLM_SUPERVISOR_PID", "BYZERLLM_ENGINE", "BYZERLLM_RANK"}


def test_every_environment_variable_is_documented_and_every_documented_one_is_read() -> None:
    in_source = {name for p in MODULES for name in re.findall(r"\"(BYZERLLM_[A-Z_]+)\"", p.read_text("utf-8"))}
    in_table = set(re.findall(r"^\| `(BYZERLLM_[A-Z_]+)` \|", read("docs/configuration.md"), re.MULTILINE))
    assert in_table == in_source - INTERNAL


def test_every_common_saas_parameter_is_documented() -> None:
    in_table = set(re.findall(r"^\| `saas\.(\w+)` \|", read("docs/configuration.md"), re.MULTILINE))
    assert in_table == set(SAAS_COMMON)


# Commands


def flags_of(command: str) -> tuple[Flag, ...]:
    flags: tuple[Flag, ...] = tuple(importlib.import_module(f"byzerllm.cli.{command}").FLAGS)
    return flags


def shown_default(flag: Flag) -> str:
    if flag.required:
        return "required"
    if flag.default is None or flag.default is False or flag.default in ("", {}):
        return ""
    return ",".join(flag.default) if isinstance(flag.default, list) else str(flag.default)


def documented_flags(section: str) -> dict[str, str]:
    """``flag: default`` for each row of the section's table."""
    rows = re.findall(r"^\| `(?:--)?(\w+)`(?:, `-\w`)? \|([^|]*)\|", section, re.MULTILINE)
    return {name: default.strip(" `") for name, default in rows}


def sections() -> dict[str, str]:
    """The sections of docs/commands.md by their headings; what comes before the first is under ``""``."""
    parts = re.split(r"^## (.+)$", read("docs/commands.md"), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


@pytest.mark.parametrize("command", lang.COMMANDS)
def test_the_flags_of_a_command_and_their_defaults_are_documented(command: str) -> None:
    assert documented_flags(sections()[command]) == {f.name: shown_default(f) for f in flags_of(command)}


def test_the_flags_that_every_command_has_are_documented() -> None:
    assert documented_flags(sections()[""]) == {f.name: shown_default(f) for f in COMMON}


# Examples


def examples() -> list[tuple[str, str]]:
    """Every ``byzerllm`` command line in a code block of a document, with the document's name."""
    found = []
    for document in DOCUMENTS:
        blocks = re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        for line in "".join(blocks).replace("\\\n", " ").splitlines():
            commands = [text.strip() for text in re.split(r"&&|\||;", line)]
            found += [(document.name, text) for text in commands if re.match(r"(\w+=\S+ )*(\S+/)?byzerllm ", text)]
    return found


def write_yaml_examples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each YAML block whose first line is ``# NAME`` becomes a file of that name, and its variables are set."""
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for name, content in re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            (folder / name).write_text(content)
            for variable in re.findall(r"\{\{\s*(\w+)\s*\}\}", content):
                monkeypatch.setenv(variable, "x")


@pytest.mark.parametrize(("document", "line"), examples(), ids=lambda value: value[:60])
def test_an_example_is_accepted_by_the_command(
    document: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_yaml_examples(tmp_path, monkeypatch)
    words = shlex.split(line, comments=True)
    start = next(number for number, word in enumerate(words) if word.rpartition("/")[2] == "byzerllm")
    command = words[start + 1]
    values = arguments.parse(command, flags_of(command), words[start + 2 :])
    if command == "deploy":
        spec = build_spec(values)
        check_spec(spec)
        if spec.is_saas:
            parse(spec, dict.fromkeys(re.findall(r"env:(\w+)", str(spec.infer_params)), "value"))
        else:
            engine(spec.infer_backend).parse(spec)


def test_the_documents_show_every_command_that_has_flags() -> None:
    shown = {line.partition("byzerllm ")[2].split()[0] for _, line in examples()}
    assert {name for name in lang.COMMANDS if flags_of(name)} <= shown


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_link_and_path_in_a_document_leads_somewhere(document: Path) -> None:
    text = document.read_text("utf-8")
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    named = re.findall(r"`((?:src|tests|docs|scripts|benchmarks)/[\w./]*[\w/])`", text)
    missing = [name for name in linked if not (document.parent / name).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing
