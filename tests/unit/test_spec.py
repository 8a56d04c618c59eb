"""What a user declares: names, numbers, ``k=v`` parameters, references to secrets, and what may be shown of them."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.errors import InvalidInput
from byzerllm.spec import (
    LOAD_BALANCE,
    MASK,
    MAX_WORKERS,
    DeploymentSpec,
    as_text,
    check_spec,
    differences,
    is_reference,
    looks_secret,
    mask,
    nearest,
    parse_bool,
    parse_float,
    parse_int,
    parse_params,
    resolve,
    unknown,
)

plain = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
names = st.text(st.sampled_from("abcxyz_.09"), min_size=1, max_size=20)
params = st.dictionaries(names, plain, max_size=6)


def spec(**fields: object) -> DeploymentSpec:
    return msgspec.convert({"name": "m", "pretrained_model_type": "saas/openai", **fields}, DeploymentSpec)


# The spec itself


def test_the_defaults_are_those_of_the_deploy_command() -> None:
    made = DeploymentSpec(name="m")
    assert made.pretrained_model_type == "custom/llama2"
    assert (made.num_workers, made.worker_concurrency, made.load_balance) == (1, None, "lru")
    assert (made.cpus_per_worker, made.gpus_per_worker, made.infer_params) == (0.01, 0.0, {})


@pytest.mark.parametrize(
    ("model_type", "is_saas", "kind"),
    [("saas/openai", True, "openai"), ("custom/auto", False, "auto"), ("auto", False, "auto")],
)
def test_a_type_has_a_family_and_a_kind(model_type: str, is_saas: bool, kind: str) -> None:
    made = spec(pretrained_model_type=model_type)
    check_spec(made)
    assert (made.is_saas, made.kind) == (is_saas, kind)


@given(params, st.sampled_from(LOAD_BALANCE), st.integers(1, MAX_WORKERS))
def test_a_stored_spec_reads_back_the_same(found: dict[str, str], rule: str, workers: int) -> None:
    made = spec(infer_params=found, load_balance=rule, num_workers=workers)
    assert msgspec.json.decode(msgspec.json.encode(made), type=DeploymentSpec) == made


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="num_worker"):
        spec(num_worker=2)


@pytest.mark.parametrize("name", ["m", "qianwen_chat", "a-b.c", "0", "x" * 128])
def test_plain_words_are_names(name: str) -> None:
    check_spec(spec(name=name))


@pytest.mark.parametrize("name", ["", " m", "a b", "a/b", "../x", "-m", "_m", ".m", "é", "m\n", "x" * 129])
def test_anything_else_is_no_name(name: str) -> None:
    with pytest.raises(InvalidInput, match="--model") as caught:
        check_spec(spec(name=name))
    assert caught.value.param == "model"


@pytest.mark.parametrize("model_type", ["", "saas/", "custom/", "sass/openai", "saas/a/b"])
def test_a_malformed_type_is_refused(model_type: str) -> None:
    with pytest.raises(InvalidInput, match="saas/TYPE or custom/TYPE") as caught:
        check_spec(spec(pretrained_model_type=model_type))
    assert caught.value.param == "pretrained_model_type"


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("num_workers", 0),
        ("num_workers", -1),
        ("num_workers", MAX_WORKERS + 1),
        ("worker_concurrency", 0),
        ("cpus_per_worker", -0.1),
        ("gpus_per_worker", -1.0),
        ("max_queue", -1),
        ("queue_timeout", -1.0),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_flag(flag: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"--{flag} .* must be at least") as caught:
        check_spec(spec(**{flag: value}))
    assert caught.value.param == flag


@pytest.mark.parametrize("flag", ["cpus_per_worker", "gpus_per_worker", "queue_timeout"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_is_refused_by_its_flag(flag: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"--{flag} {value} must be a number") as caught:
        check_spec(spec(**{flag: value}))
    assert caught.value.param == flag


def test_the_smallest_and_largest_numbers_are_accepted() -> None:
    check_spec(spec(num_workers=MAX_WORKERS, worker_concurrency=1, max_queue=0, queue_timeout=0.0))
    check_spec(spec(num_workers=1, cpus_per_worker=0.0, gpus_per_worker=0.0))


# k=v parameters


@given(params)
def test_parameters_read_back_as_they_were_quoted(found: dict[str, str]) -> None:
    words = [shlex.quote(f"{name}={value}") for name, value in found.items()]
    assert parse_params(words) == found
    assert parse_params([" ".join(words)]) == found  # one token that holds them all


def test_the_first_equals_sign_divides_and_the_last_value_counts() -> None:
    assert parse_params(["saas.base_url=http://h/v1?a=b", "x=", "x=2"]) == {
        "saas.base_url": "http://h/v1?a=b",
        "x": "2",
    }


@pytest.mark.parametrize("value", ['{"a": [1, "b"]}', '[{"name": "a b", "path": "/a"}]', '["x"]'])
def test_json_keeps_its_quotes(value: str) -> None:
    assert parse_params([f"backend.x={value}", "y=1"]) == {"backend.x": value, "y": "1"}


@pytest.mark.parametrize("token", ["saas.api_key", "=value", "a=1 b", "a='unclosed"])
def test_a_word_that_is_no_parameter_is_refused(token: str) -> None:
    with pytest.raises(InvalidInput, match="--infer_params") as caught:
        parse_params([token])
    assert caught.value.param == "infer_params"


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (False, "false"), (None, ""), (28000, "28000"), (0.5, "0.5"), ("x y", "x y")],
)
def test_a_yaml_scalar_reads_as_it_would_have_been_typed(value: object, text: str) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize("text", ["true", "True", "1", "YES", " on "])
def test_words_for_true(text: str) -> None:
    assert parse_bool("verbose", text) is True


@pytest.mark.parametrize("text", ["false", "False", "0", "NO", "off"])
def test_words_for_false(text: str) -> None:
    assert parse_bool("verbose", text) is False


@pytest.mark.parametrize("text", ["", "2", "maybe", "truee"])
def test_other_words_are_no_truth_value(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"verbose=.*true or false") as caught:
        parse_bool("verbose", text)
    assert caught.value.param == "verbose"


@given(st.integers())
def test_a_whole_number_reads_back(value: int) -> None:
    assert parse_int("n_ctx", str(value), low=value) == value
    with pytest.raises(InvalidInput, match="at least"):
        parse_int("n_ctx", str(value), low=value + 1)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_reads_back(value: float) -> None:
    assert parse_float("saas.timeout", str(value)) == value


@pytest.mark.parametrize("text", ["", "ten", "1.5", "0x10"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(InvalidInput, match="whole number"):
        parse_int("n_ctx", text)


@pytest.mark.parametrize("text", ["", "ten", "nan", "inf", "-inf", "1e999"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(InvalidInput, match="must be a number"):
        parse_float("saas.timeout", text)


def test_a_number_that_is_too_small() -> None:
    assert parse_float("saas.timeout", "0.5", low=0.5) == 0.5
    with pytest.raises(InvalidInput, match=r"saas.timeout=0.4 must be at least 0.5"):
        parse_float("saas.timeout", "0.4", low=0.5)


# Near misses

KNOWN = ("saas.api_key", "saas.model", "saas.base_url", "n_gpu_layers")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("saas.api_kei", "saas.api_key"),
        ("num_gpu_layers", "n_gpu_layers"),
        ("model", "saas.model"),
        ("backend.model", "saas.model"),
        ("zzz", None),
    ],
)
def test_the_nearest_known_word(word: str, expected: str | None) -> None:
    assert nearest(word, KNOWN) == expected


def test_a_word_too_far_in_spelling_is_found_by_its_last_part() -> None:
    assert nearest("a_very_long_prefix.k", ["b.k"]) == "b.k"


@given(plain, st.lists(names))
def test_the_nearest_word_is_a_known_one(word: str, known: list[str]) -> None:
    assert nearest(word, known) in {None, *known}


def test_an_unknown_name_shows_the_nearest_one() -> None:
    error = unknown("parameter", "saas.modle", KNOWN, param="infer_params")
    assert str(error) == "Unknown parameter 'saas.modle'. Did you mean saas.model?"
    assert error.param == "infer_params"


def test_an_unknown_name_far_from_all_shows_a_short_list_or_its_length() -> None:
    assert unknown("type", "zzz", ["b", "a"], param="t").hint == "Known: a, b."
    assert unknown("type", "zzz", [], param="t").hint == "Known: none."
    assert "41 known names" in (unknown("type", "zzz", map(str, range(41)), param="t").hint or "")


# Secrets


@pytest.mark.parametrize(
    ("value", "expected"), [("env:KEY", True), ("file:~/key", True), ("sk-123", False), ("ENV:KEY", False), ("", False)]
)
def test_what_is_a_reference(value: str, expected: bool) -> None:
    assert is_reference(value) is expected


def test_a_plain_value_resolves_to_itself() -> None:
    assert resolve("saas.api_key", "sk-123", {}) == "sk-123"


def test_a_variable_is_read_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "from the process")
    assert resolve("saas.api_key", "env:A_KEY") == "from the process"
    assert resolve("saas.api_key", "env:A_KEY", {"A_KEY": "given"}) == "given"


@pytest.mark.parametrize("environ", [{}, {"A_KEY": ""}])
def test_a_variable_that_is_not_set_or_empty_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="A_KEY is not set") as caught:
        resolve("saas.api_key", "env:A_KEY", environ)
    assert caught.value.hint is not None
    assert "shell that has A_KEY" in caught.value.hint


def test_a_file_gives_its_text_without_the_line_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("  sk-123\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("saas.api_key", f"file:{tmp_path}/key") == "sk-123"
    assert resolve("saas.api_key", "file:~/key") == "sk-123"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing", "No such file"), ("folder", "Is a directory"), ("binary", "it is not text"), ("blank", "is empty")],
)
def test_a_file_that_gives_no_secret_is_refused_with_the_reason(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "blank").write_text(" \n")
    with pytest.raises(InvalidInput, match=reason) as caught:
        resolve("saas.api_key", f"file:{tmp_path / name}")
    assert caught.value.param == "saas.api_key"
    assert str(tmp_path / name) in caught.value.message


@given(params, st.sets(names))
def test_what_is_shown_holds_no_secret_and_everything_else(found: dict[str, str], secret: set[str]) -> None:
    shown = mask(found, secret | set(list(found)[:2]))
    assert shown.keys() == found.keys()
    for name, value in found.items():
        hidden = name in secret or name in list(found)[:2]
        assert shown[name] == (MASK if hidden and value and not is_reference(value) else value)


def test_references_are_shown_since_they_are_no_secrets() -> None:
    given_params = {"saas.api_key": "env:KEY", "saas.secret_key": "abc", "saas.model": "m"}
    shown = mask(given_params, ["saas.api_key", "saas.secret_key"])
    assert shown == {"saas.api_key": "env:KEY", "saas.secret_key": MASK, "saas.model": "m"}
    assert given_params["saas.secret_key"] == "abc"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("saas.api_key", True),
        ("saas.Secret_Key", True),
        ("saas.access_token", True),
        ("password", True),
        ("saas.app_code", True),
        ("saas.model", False),
        ("saas.base_url", False),
    ],
)
def test_names_that_look_secret_without_a_provider(name: str, expected: bool) -> None:
    assert looks_secret(name) is expected


# Differences


def test_equal_specs_do_not_differ() -> None:
    assert differences(spec(infer_params={"a": "1"}), spec(infer_params={"a": "1"})) == []


def test_each_difference_is_named_with_both_values() -> None:
    current = spec(num_workers=1, worker_concurrency=None, infer_params={"a": "1", "b": "2"})
    requested = spec(num_workers=2, worker_concurrency=4, infer_params={"b": "3", "c": "4"})
    assert differences(current, requested) == [
        ("num_workers", "1", "2"),
        ("worker_concurrency", "", "4"),
        ("a", "1", "(not set)"),
        ("b", "2", "3"),
        ("c", "(not set)", "4"),
    ]
