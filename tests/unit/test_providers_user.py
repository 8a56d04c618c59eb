"""A user's own vendors, from ``$BYZERLLM_HOME/providers``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from byzerllm.errors import InvalidInput
from byzerllm.providers.parse import parse
from byzerllm.providers.registry import provider, providers, secret_params, shadowing
from byzerllm.spec import DeploymentSpec

TABLE = """
type = "{type}"
aliases = ["{type}_alias"]
title = "Mine"
wire = "openai"
base_url = "https://mine.example/v1"
auth = "bearer"
verified = "2026-11-23"
default_model = "m"
[params.token]
secret = true
header = "x-token"
help = "token"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BYZERLLM_HOME", str(tmp_path))
    found = tmp_path / "providers"
    found.mkdir()
    return found


def add(folder: Path, kind: str, text: str = TABLE) -> Path:
    path = folder / f"{kind}.toml"
    path.write_text(text.replace("{type}", kind))
    return path


def test_a_vendor_is_there_as_soon_as_its_file_is(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="Unknown model type 'saas/mine'"):
        provider("mine")
    path = add(folder, "mine")
    assert provider("mine") is provider("mine_alias")
    assert provider("mine").base_url == "https://mine.example/v1"
    assert "saas.token" in secret_params("mine")
    assert "mine" not in providers()
    path.write_text(path.read_text().replace("mine.example", "other.example"))
    os.utime(path, ns=(1, 1))
    assert provider("mine").base_url == "https://other.example/v1"
    path.unlink()
    with pytest.raises(InvalidInput):
        provider("mine")


def test_without_the_folder_there_are_the_built_in_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYZERLLM_HOME", str(tmp_path / "none"))
    assert provider("openai") is providers()["openai"]
    assert shadowing("openai") is None


def test_who_replaces_a_built_in_type_is_told(folder: Path) -> None:
    path = add(folder, "openai")
    options = parse(DeploymentSpec(name="m", pretrained_model_type="saas/openai"), {})
    assert options.base_url == "https://mine.example/v1"
    assert options.warnings == (f"saas/openai is what {path} says, not the built-in type.",)
    assert provider("official_openai") is providers()["official_openai"]


def test_a_broken_file_is_named_with_the_reason_and_harms_no_other_type(folder: Path) -> None:
    path = add(folder, "mine", TABLE.replace("bearer", "barer"))
    add(folder, "well")
    for _ in range(2):
        with pytest.raises(InvalidInput) as caught:
            provider("mine")
        assert caught.value.message.startswith(f"The vendor table {path} cannot be used: Unknown auth 'barer'.")
    assert provider("well").title == "Mine"
    assert provider("openai") is providers()["openai"]
    with pytest.raises(InvalidInput) as caught:  # perhaps an alias in the broken one
        provider("mine_alias")
    assert "Unknown model type 'saas/mine_alias'. The vendor table" in caught.value.message


def test_a_file_has_the_name_of_its_type(folder: Path) -> None:
    add(folder, "mine").rename(folder / "yours.toml")
    with pytest.raises(InvalidInput, match=r"its type is 'mine', so it must be named mine\.toml"):
        provider("yours")


def test_a_file_that_is_no_text_is_named(folder: Path) -> None:
    (folder / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match=r"mine\.toml cannot be read: it is not UTF-8"):
        provider("mine")
    (folder / "yours.toml").mkdir()
    with pytest.raises(InvalidInput, match=r"yours\.toml cannot be read: Is a directory"):
        provider("yours")
