"""Typed flags, the file and the defaults: which wins, how each is read, and what the banner shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.cli import arguments, deploy, logs, serve, server, stat
from byzerllm.cli.arguments import banner, normalise, parse
from byzerllm.errors import InvalidInput
from byzerllm.spec import looks_secret

if TYPE_CHECKING:
    import argparse


def parse_deploy(*words: str) -> argparse.Namespace:
    return parse("deploy", deploy.FLAGS, words)


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "flags.yaml"
    path.write_text(text, "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--num-workers", "2"], ["--num_workers", "2"]),
        (["--infer-params", "a-b=c-d"], ["--infer_params", "a-b=c-d"]),
        (["--model=a-b", "--output-file=x-y=z"], ["--model=a-b", "--output_file=x-y=z"]),
        (["-f", "--", "-x-y"], ["-f", "--", "-x-y"]),
        ([], []),
    ],
)
def test_dashes_in_flag_names_become_underscores_and_values_stay(typed: list[str], expected: list[str]) -> None:
    assert normalise(typed) == expected


@given(st.from_regex(r"--[a-z]+([-_][a-z]+)*", fullmatch=True), st.text())
def test_a_value_after_the_equals_sign_is_never_touched(flag: str, value: str) -> None:
    [word] = normalise([f"{flag}={value}"])
    name, _, kept = word.partition("=")
    assert kept == value
    assert "-" not in name[2:]


def test_defaults_are_those_of_the_older_tool() -> None:
    values = vars(parse_deploy("--model", "m"))
    assert values == {
        "model": "m",
        "pretrained_model_type": "custom/llama2",
        "infer_backend": "",
        "infer_params": {},
        "model_path": "",
        "num_workers": 1,
        "worker_concurrency": None,
        "cpus_per_worker": 0.01,
        "gpus_per_worker": 0.0,
        "resources": {},
        "load_balance": "lru",
        "max_queue": 1024,
        "queue_timeout": 300.0,
        "no_wait": False,
        "no_verify": False,
        "replace": False,
        "ray_address": "auto",
        "file": None,
    }
    served = parse("serve", serve.FLAGS, [])
    assert (served.port, served.uvicorn_log_level, served.response_role) == (8000, "info", "assistant")
    assert (served.allowed_origins, served.template, served.client) == (["*"], "auto", "simple")


def test_the_guides_saas_command() -> None:
    values = parse_deploy(
        *("--pretrained_model_type", "saas/qianwen", "--cpus_per_worker", "0.001", "--gpus_per_worker", "0"),
        *("--num_workers", "2", "--infer_params", "saas.api_key=k", "saas.model=qwen-max"),
        *("--model", "qianwen_chat"),
    )
    assert values.infer_params == {"saas.api_key": "k", "saas.model": "qwen-max"}
    assert (values.cpus_per_worker, values.gpus_per_worker, values.num_workers) == (0.001, 0.0, 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--infer_params", "a=1 b=2"], {"a": "1", "b": "2"}),
        (["--infer_params", "a=1", "--infer-params", "b=2"], {"a": "1", "b": "2"}),
        (["--infer_params", "a=1", "b=1", "--infer_params", "a=2"], {"a": "2", "b": "1"}),
        (["--infer_p", "a='x y'"], {"a": "x y"}),
        (["--infer_params", "url=http://h/?q=1&r=2"], {"url": "http://h/?q=1&r=2"}),
    ],
)
def test_infer_params_add_up(words: list[str], expected: dict[str, str]) -> None:
    assert parse_deploy("--model", "m", *words).infer_params == expected


@pytest.mark.parametrize(
    ("yaml", "words", "expected"),
    [
        ("", ["--resources", "TPU=1", "zephyr=0.5"], {"TPU": 1.0, "zephyr": 0.5}),
        ("", ["--resources", "TPU=1 zephyr=2", "--resources", "TPU=4"], {"TPU": 4.0, "zephyr": 2.0}),
        ("resources: {TPU: 2, zephyr: 1}", ["--resources", "TPU=4"], {"TPU": 4.0, "zephyr": 1.0}),
        ("resources: [TPU=2, zephyr=1]", [], {"TPU": 2.0, "zephyr": 1.0}),
        ("resources: TPU=2", [], {"TPU": 2.0}),
    ],
)
def test_resources_add_up(tmp_path: Path, yaml: str, words: list[str], expected: dict[str, float]) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text(f"model: m\n{yaml}")
    assert parse_deploy("--file", str(file), *words).resources == expected


def test_resources_in_the_banner_are_no_secrets() -> None:
    values = parse_deploy("--model", "m", "--resources", "key_slots=1")
    assert "resources           : {'key_slots': 1.0}" in banner("deploy", deploy.FLAGS, values)


@pytest.mark.parametrize("given", ["TPU", "TPU=", "TPU=many", "=", "TPU=1 2"])
def test_resources_that_are_no_numbers_are_refused(given: str) -> None:
    with pytest.raises(InvalidInput, match="is not of the form name=number"):
        parse_deploy("--model", "m", "--resources", given)


WORD = st.from_regex(r"[a-z][a-z.]{0,6}", fullmatch=True)
VALUE = st.from_regex(r"[A-Za-z0-9:/._-]{0,8}", fullmatch=True)


@given(st.lists(st.dictionaries(WORD, VALUE, min_size=1, max_size=4), min_size=1, max_size=4))
def test_repeated_infer_params_are_the_union_and_the_last_wins(groups: list[dict[str, str]]) -> None:
    words = [w for g in groups for w in ("--infer_params", *(f"{k}={v}" for k, v in g.items()))]
    assert parse_deploy("--model", "m", *words).infer_params == {k: v for g in groups for k, v in g.items()}


@pytest.mark.parametrize(
    ("yaml", "words", "expected"),
    [
        ("model: m", [], {"model": "m"}),
        ("model: m\nnum-workers: 3", [], {"num_workers": 3}),
        ("model: m\nnum_workers: '3'", [], {"num_workers": 3}),
        ("model: m\nnum_workers: 3", ["--num_workers", "1"], {"num_workers": 1}),
        ("model: m", ["--model", "typed"], {"model": "typed"}),
        ("model: m\nreplace: true\nno_wait: 'no'", [], {"replace": True, "no_wait": False}),
        ("model: m\nreplace: false", ["--replace"], {"replace": True}),
        ("model: m\nmodel_path:\nqueue_timeout: ~", [], {"model_path": "", "queue_timeout": 300.0}),
        ("model: m\ninfer_params: a=1 b=2", [], {"infer_params": {"a": "1", "b": "2"}}),
        ("model: m\ninfer_params: [a=1, b=2]", [], {"infer_params": {"a": "1", "b": "2"}}),
        (
            "model: m\ninfer_params:\n  saas.timeout: 1.50\n  on: true\n  v: 2024-02-01",
            [],
            {"infer_params": {"saas.timeout": "1.50", "on": "true", "v": "2024-02-01"}},
        ),
        (
            "model: m\ninfer_params: {a: 1, b: 1}",
            ["--infer_params", "b=2", "c=3"],
            {"infer_params": {"a": "1", "b": "2", "c": "3"}},
        ),
        ("model: m\nfile: other.yaml", [], {"model": "m"}),
    ],
)
def test_the_file_and_the_typed_flags_together(
    tmp_path: Path, yaml: str, words: list[str], expected: dict[str, Any]
) -> None:
    values = vars(parse_deploy("--file", yaml_file(tmp_path, yaml), *words))
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--model is missing"),
        (["--model", ""], "--model is missing"),
        (["--model", "m", "--num_workers", "x"], "--num_workers 'x' must be a whole number"),
        (["--model", "m", "--num_workers", "1.5"], "must be a whole number"),
        (["--model", "m", "--cpus_per_worker", "many"], "must be a number"),
        (["--model", "m", "--load_balance", "best"], "must be one of: lru, round_robin, least_busy"),
        (["--model", "m", "--infer_params", "novalue"], "not of the form name=value"),
        (["--model", "m", "--infer_params", "a='x"], "No closing quotation"),
        (["--model", "m", "--num_wrkers", "1"], "Did you mean --num_workers?"),
        (["--model", "m", "stray"], "'stray' is not expected here"),
        (["--model"], "expected one argument"),
        (["--model", "m", "--in", "x"], "ambiguous option"),
        (["--model", "m", "--file", "/no/such.yaml"], "No such file"),
    ],
)
def test_wrong_flags_are_refused_by_name(words: list[str], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_deploy(*words)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--model", "m\udcff"], "model"),
        (["--model", "m", "--infer_params", "a=1", "saas.reply=\udcff"], "infer_params"),
    ],
)
def test_bytes_that_are_no_text_are_refused_by_flag_and_not_shown(words: list[str], flag: str) -> None:
    with pytest.raises(InvalidInput, match=f"--{flag} has bytes that are no UTF-8 text") as caught:
        parse_deploy(*words)
    assert (caught.value.param, "\udcff" in str(caught.value)) == (flag, False)


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("model: m\nnum_workrs: 2", "Did you mean num_workers?"),
        ("model: m\nnum_workers: two", "num_workers in "),
        ("model: m\nnum_workers: [2]", "must be a single value"),
        ("model: m\nreplace: maybe", "must be true or false"),
        ("model: m\nload_balance: best", "must be one of"),
        ("model: m\ninfer_params:\n  saas:\n    model: x", "infer_params in"),
        ("model: m\ninfer_params: [a: 1]", "list of name=value"),
        ("model: [a, b]", "must be a single value"),
    ],
)
def test_wrong_values_in_the_file_are_refused_by_name(tmp_path: Path, yaml: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_deploy("--file", yaml_file(tmp_path, yaml))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ('["*"]', ["*"]),
        ('["https://a", "https://b"]', ["https://a", "https://b"]),
        ("https://a, https://b", ["https://a", "https://b"]),
    ],
)
def test_lists_are_json_or_commas(tmp_path: Path, typed: str, expected: list[str]) -> None:
    assert parse("serve", serve.FLAGS, ["--allowed_origins", typed]).allowed_origins == expected
    file = yaml_file(tmp_path, f"allowed_origins: {json.dumps(expected)}")
    assert parse("serve", serve.FLAGS, ["--file", file]).allowed_origins == expected


@pytest.mark.parametrize("typed", ["[", "[1]", '[["a"]]'])
def test_a_list_that_is_none_is_refused(typed: str) -> None:
    with pytest.raises(InvalidInput, match="allowed_origins"):
        parse("serve", serve.FLAGS, ["--allowed_origins", typed])


def test_a_bare_word_stands_before_or_after_the_flags() -> None:
    for words in (["start", "--ray_address", "embedded"], ["--ray_address", "embedded", "start"]):
        values = parse("server", server.FLAGS, words)
        assert (values.action, values.ray_address) == ("start", "embedded")
    with pytest.raises(InvalidInput, match="action 'begin' must be one of: start, stop, status"):
        parse("server", server.FLAGS, ["begin"])


def test_short_and_negative() -> None:
    assert parse("logs", logs.FLAGS, ["--model", "m", "-f"]).follow is True
    assert parse_deploy("--model", "m", "--num_workers", "-1").num_workers == -1


def test_the_banner_is_the_older_tools() -> None:
    values = parse("stat", stat.FLAGS, ["--model", "gpt3_5_chat"])
    assert banner("stat", stat.FLAGS, values).splitlines() == [
        "Command Line Arguments:",
        "--------------------------------------------------",
        "command             : stat",
        "model               : gpt3_5_chat",
        "interval            : 0",
        "detail              : False",
        "ray_address         : auto",
        "file                : None",
        "--------------------------------------------------",
    ]


@pytest.mark.parametrize(
    "name", ["saas.api_key", "saas.secret_key", "saas.access_token", "saas.api_secret", "hf_token", "aws_password"]
)
def test_the_banner_hides_secrets_and_shows_references(name: str) -> None:
    values = parse_deploy("--model", "m", "--infer_params", f"{name}=sk-12345", "saas.model=gpt")
    shown = banner("deploy", deploy.FLAGS, values)
    assert "12345" not in shown
    assert f"'{name}': '******', 'saas.model': 'gpt'" in shown
    values = parse_deploy("--model", "m", "--infer_params", f"{name}=env:MY_KEY")
    assert f"'{name}': 'env:MY_KEY'" in banner("deploy", deploy.FLAGS, values)


def test_the_banner_hides_the_key_of_serve_and_credentials_in_addresses() -> None:
    values = parse("serve", serve.FLAGS, ["--api_key", "sk-12345"])
    assert "api_key             : ******" in banner("serve", serve.FLAGS, values)
    values = parse_deploy("--model", "m", "--infer_params", "saas.proxies=http://joe:pass1@proxy:3128/")
    shown = banner("deploy", deploy.FLAGS, values)
    assert "http://******@proxy:3128/" in shown
    assert "pass1" not in shown


@given(st.dictionaries(WORD, st.uuids().map(str), min_size=1, max_size=5))
def test_no_value_that_looks_secret_reaches_the_banner(params: dict[str, str]) -> None:
    params["x.key"] = "0f0f0f0f"
    values = parse_deploy("--model", "m", "--infer_params", *(f"{k}={v}" for k, v in params.items()))
    shown = arguments.banner("deploy", deploy.FLAGS, values)
    assert not [v for k, v in params.items() if looks_secret(k) and v in shown]
