"""Vendors' tables, and the parsing of ``saas.*`` parameters against them."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from byzerllm.errors import InvalidInput
from byzerllm.providers import registry
from byzerllm.providers.parse import SaasOptions, parse
from byzerllm.providers.registry import provider, providers, secret_params
from byzerllm.providers.schema import Param, Provider
from byzerllm.spec import DeploymentSpec, Timeouts
from byzerllm.wire.base import Task

KEY = {"saas.api_key": "sk-1"}


def options(kind: str = "openai", **params: str) -> SaasOptions:
    named = {f"saas.{name}": value for name, value in params.items()}
    return parse(DeploymentSpec(name="m", pretrained_model_type=f"saas/{kind}", infer_params=named), {})


def test_references_are_resolved_whatever_the_parameter(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("from-a-file\n")
    named = {
        "saas.api_key": "env:KEY",
        "saas.timeout": "env:SECONDS",
        "saas.base_url": "env:URL",
        "saas.model": f"file:{tmp_path / 'model'}",
    }
    spec = DeploymentSpec(name="m", pretrained_model_type="saas/openai", infer_params=named)
    found = parse(spec, {"KEY": "sk-env", "SECONDS": "7", "URL": "http://h/v1"})
    assert (found.api_key, found.timeouts.idle, found.base_url) == ("sk-env", 7, "http://h/v1")
    assert found.model == "from-a-file"
    with pytest.raises(InvalidInput, match=r"saas\.api_key=env:KEY: the environment variable KEY is not set"):
        parse(spec, {})


def openai(**params: str) -> SaasOptions:
    return options("openai", api_key="sk-1", **params)


def refused(kind: str = "openai", **params: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        options(kind, **params)
    return caught.value


# -- tables -----------------------------------------------------------------------------------------------------------


def test_every_table_loads_and_is_found_by_its_type() -> None:
    names = [file.name for file in resources.files("byzerllm.providers").iterdir()]
    files = [name.removesuffix(".toml") for name in names if name.endswith(".toml")]
    assert {"openai", "mock"} <= set(files)
    assert {p.type for p in providers().values()} == set(files)
    assert provider("official_openai") is provider("openai")


def test_an_unknown_type_names_the_nearest() -> None:
    error = refused("opanai")
    assert error.message == "Unknown model type 'saas/opanai'."
    assert error.hint == "Did you mean saas/openai?"
    assert error.param == "pretrained_model_type"


def test_secret_parameters() -> None:
    assert secret_params("openai") == {"saas.api_key", "saas.proxies", "saas.extra_headers"}
    assert secret_params("mock") == {
        "saas.api_key", "saas.proxies", "saas.extra_headers", "saas.demand_key",
    }  # fmt: skip


# -- parameters -------------------------------------------------------------------------------------------------------


def test_the_least_that_openai_needs() -> None:
    found = openai()
    assert found == SaasOptions(
        provider=provider("openai"),
        base_url="https://api.openai.com/v1",
        model="gpt-3.5-turbo-1106",
        api_key="sk-1",
        timeouts=Timeouts(),
        max_retries=2,
        own_url="https://api.openai.com/v1",
        asks_usage=True,
    )
    assert found.task is Task.CHAT


def test_every_parameter_goes_to_its_place() -> None:
    found = openai(
        model="x", organization="o", project="p", reasoning_effort='lo"w', api_version="v1", proxies="http://p:1",
        local_address="10.0.0.1", ca_file="/ca.pem", max_retries="0",
    )  # fmt: skip
    assert found.headers == {"OpenAI-Organization": "o", "OpenAI-Project": "p"}
    assert found.query == {"api-version": "v1"}
    assert found.body == {"reasoning_effort": '"lo\\"w"'}
    assert (found.proxy, found.local_address, found.ca_file) == ("http://p:1", "10.0.0.1", "/ca.pem")
    assert (found.model, found.max_retries) == ("x", 0)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("saas.api_kee", "Did you mean saas.api_key?"),
        ("saas.timeot", "Did you mean saas.timeout?"),
        ("api_key", "Did you mean saas.api_key?"),
        ("backend.model", "Did you mean saas.model?"),
    ],
)
def test_an_unknown_parameter_names_the_nearest(key: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(DeploymentSpec(name="m", pretrained_model_type="saas/openai", infer_params={**KEY, key: "x"}), {})
    assert (caught.value.message, caught.value.hint, caught.value.param) == (f"Unknown parameter {key!r}.", hint, key)


def test_a_missing_key_says_how_to_give_it() -> None:
    for params in ({}, {"api_key": ""}):
        error = refused("openai", **params)
        assert error.message.startswith("saas.api_key is missing: saas/openai needs it")
        assert (error.hint, error.param) == ("Add --infer_params saas.api_key=...", "saas.api_key")


def test_the_older_name_of_base_url() -> None:
    assert openai(api_base="http://h/v1", model="x").base_url == "http://h/v1"
    assert openai(api_base="http://h/v1", base_url="http://h/v1", model="x").base_url == "http://h/v1"
    for params in (
        {"base_url": "http://h/v1", "api_base": "http://other/v1"},
        {"api_base": "http://other/v1", "base_url": "http://h/v1"},
    ):
        error = refused(api_key="k", model="x", **params)
        assert error.message == f"saas.base_url is given twice, once as saas.{list(params)[1]}."


def test_what_has_no_effect_is_said() -> None:
    assert openai(api_type="azure").warnings == (
        "saas.api_type has no effect (no effect; Azure has a type of its own)",
    )


def test_the_default_model_is_for_the_vendors_own_address_only() -> None:
    assert openai(base_url="https://api.openai.com/v1/").model == "gpt-3.5-turbo-1106"
    error = refused(api_key="k", base_url="https://compatible.example/v1")
    assert (error.message, error.param) == ("saas.model is missing: name the vendor's model.", "saas.model")
    assert options("mock").model == "mock-chat"


@pytest.mark.parametrize(("model", "task"), [("text-Embedding-3", Task.EMBEDDING), ("gpt-5", Task.CHAT)])
def test_a_models_name_tells_its_task(model: str, task: Task) -> None:
    assert openai(model=model).task is task


@pytest.mark.parametrize(
    "url",
    [
        "host/v1", "ftp://host", "http://", "http://host:port/v1", "http://host:99999", "http://[::1/v1",
        "http://host/v1?a=1", "http://host/v1#a", "https://user:password@host/v1",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(url: str) -> None:
    error = refused(api_key="k", model="x", base_url=url)
    assert error.param == "saas.base_url"
    assert "is no http(s) address such as https://host/v1" in error.message


@pytest.mark.parametrize("url", ["http://host", "http://[::1]:8000/v1", "https://host/a/b/v1", "builtin:mock"])
def test_an_address_may_end_with_a_slash(url: str) -> None:
    assert openai(base_url=url, model="x").base_url == openai(base_url=url + "/", model="x").base_url == url


@pytest.mark.parametrize(
    ("params", "timeouts"),
    [
        ({}, Timeouts(10, 600, 300, 3600)),
        ({"timeout": "5"}, Timeouts(5, 5, 5, 3600)),
        ({"timeout": "50"}, Timeouts(10, 50, 50, 3600)),
        ({"timeout": "50", "connect_timeout": "30", "idle_timeout": "1"}, Timeouts(30, 50, 1, 3600)),
        ({"first_byte_timeout": "1.5", "total_timeout": "9"}, Timeouts(10, 1.5, 300, 9)),
    ],
)
def test_timeouts(params: dict[str, str], timeouts: Timeouts) -> None:
    assert openai(**params).timeouts == timeouts


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"timeout": "0"}, "saas.timeout=0 must be at least 0.001"),
        ({"timeout": "-1"}, "saas.timeout=-1 must be at least 0"),
        ({"idle_timeout": "soon"}, "saas.idle_timeout='soon' must be a number"),
        ({"connect_timeout": "inf"}, "must be a number"),
        ({"max_retries": "1.5"}, "saas.max_retries='1.5' must be a whole number"),
        ({"max_retries": "-1"}, "saas.max_retries=-1 must be at least 0"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(params: dict[str, str], words: str) -> None:
    assert words in refused(api_key="k", **params).message


def test_the_knobs_of_the_mock_are_headers() -> None:
    knobs = {
        name: "true" if p.kind == "bool" else "1" for name, p in provider("mock").params.items() if p.header is not None
    }
    headers = options("mock", **knobs).headers
    for name in knobs:
        header = "x-mock-api-key" if name == "demand_key" else "x-mock-" + name.replace("_", "-")
        assert headers[header] == knobs[name]
    assert len(headers) == len(knobs) >= 16
    assert options("mock").api_key == "mock"
    assert options("mock").headers == {}
    assert "must be true or false" in refused("mock", malformed="perhaps").message


# -- kinds that no table uses in a body yet ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [("int", "1_0", 10), ("int", "+5", 5), ("float", ".5", 0.5), ("float", "1e3", 1000.0), ("bool", "Yes", True),
     ("bool", "0", False), ("str", "7", "7")],
)  # fmt: skip
def test_a_body_field_is_json_of_its_kind(monkeypatch: pytest.MonkeyPatch, kind: Any, text: str, value: object) -> None:
    vendor = Provider(
        type="t", title="T", wire="openai", base_url="http://h", auth="none", verified="2026-01-01",
        default_model="m", params={"field": Param(kind=kind, body="field")},
    )  # fmt: skip
    monkeypatch.setattr(registry, "providers", lambda: {"t": vendor})
    assert json.loads(options("t", field=text).body["field"]) == value
