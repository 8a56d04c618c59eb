"""What a process reads from its environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from byzerllm.errors import InvalidInput
from byzerllm.settings import DEFAULT_PORT, Settings


def test_an_empty_environment_gives_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    settings = Settings.read({})
    assert settings.home == Path("/home/someone/.byzerllm")
    assert (settings.port, settings.api_key) == (DEFAULT_PORT, None)
    assert settings.max_body == 64 * 1024 * 1024
    assert (settings.drain_timeout, settings.probe_interval) == (30.0, 5.0)


def test_without_an_argument_the_process_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYZERLLM_HOME", "/srv/byzerllm")
    assert Settings.read().home == Path("/srv/byzerllm")


def test_on_ray_only_the_home_is_another() -> None:
    settings = Settings.read({"BYZERLLM_HOME": "/srv/byzerllm", "BYZERLLM_API_KEY": "k"})
    on_ray = settings.on_ray("h:6379")
    assert (on_ray.home, on_ray.ray_address) == (Path("/srv/byzerllm/ray"), "h:6379")
    assert on_ray.server_file == Path("/srv/byzerllm/ray/server.json")
    assert (on_ray.api_key, settings.ray_address) == ("k", "")


def test_every_variable_is_read() -> None:
    settings = Settings.read(
        {
            "BYZERLLM_HOME": "/srv/byzerllm",
            "BYZERLLM_PORT": "9000",
            "BYZERLLM_API_KEY": "k",
            "BYZERLLM_MAX_BODY_MB": "1.5",
            "BYZERLLM_DRAIN_TIMEOUT": "0",
            "BYZERLLM_PROBE_INTERVAL": "0.1",
        }
    )
    assert (settings.port, settings.api_key) == (9000, "k")
    assert settings.max_body == 3 * 512 * 1024
    assert (settings.drain_timeout, settings.probe_interval) == (0.0, 0.1)


def test_an_empty_variable_counts_as_not_set() -> None:
    names = ("HOME", "PORT", "API_KEY", "MAX_BODY_MB", "DRAIN_TIMEOUT", "PROBE_INTERVAL")
    assert Settings.read({f"BYZERLLM_{name}": "" for name in names}) == Settings.read({})


def test_the_home_is_absolute_and_knows_the_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir(tmp_path)
    assert Settings.read({"BYZERLLM_HOME": "~/there"}).home == Path("/home/someone/there")
    assert Settings.read({"BYZERLLM_HOME": "here"}).home == tmp_path / "here"


def test_everything_that_is_kept_is_under_the_home() -> None:
    settings = Settings(home=Path("/srv"))
    assert settings.server_file == Path("/srv/server.json")
    assert settings.database == Path("/srv/state.db")
    assert settings.logs == Path("/srv/logs")
    assert settings.server_log == Path("/srv/logs/server.log")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BYZERLLM_PORT", "http"),
        ("BYZERLLM_PORT", "-1"),
        ("BYZERLLM_PORT", "65536"),
        ("BYZERLLM_PORT", "nan"),
        ("BYZERLLM_MAX_BODY_MB", "0"),
        ("BYZERLLM_MAX_BODY_MB", "inf"),
        ("BYZERLLM_DRAIN_TIMEOUT", "-0.1"),
        ("BYZERLLM_PROBE_INTERVAL", "0"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name}='{text}' must be a number from") as caught:
        Settings.read({name: text})
    assert caught.value.param == name
