"""``--file``: the ENV rule at any depth, and what is said about a file that cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.cli.config_file import fill, load_flags
from byzerllm.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

ENVIRON = {"KEY": "sk-1", "HOST": "example.com", "EMPTY": "", "BRACES": "{{KEY}}"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ENV {{KEY}}", "sk-1"),
        ("ENV {{ KEY }}", "sk-1"),
        ("ENV   https://{{HOST}}/v1?k={{KEY}}", "https://example.com/v1?k=sk-1"),
        ("ENV {{EMPTY}}", ""),
        ("ENV {{BRACES}}", "{{KEY}}"),
        ("ENVOY {{KEY}}", "ENVOY {{KEY}}"),
        ("ENV{{KEY}}", "ENV{{KEY}}"),
        ("ENV none here", "ENV none here"),
        ("my ENV {{KEY}}", "my ENV {{KEY}}"),
        ("{{KEY}}", "{{KEY}}"),
        ({"a": {"b": ["ENV {{KEY}}", "c"]}}, {"a": {"b": ["sk-1", "c"]}}),
        ([["ENV {{HOST}}"]], [["example.com"]]),
    ],
)
def test_env_rule(value: Any, expected: Any) -> None:
    assert fill(value, "key", ENVIRON) == expected


NESTED = st.recursive(
    st.just("ENV {{KEY}}"),
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(st.text(), inner, min_size=1, max_size=3),
    max_leaves=8,
)


@given(NESTED)
def test_env_is_filled_in_at_any_depth(value: Any) -> None:
    assert "{{" not in str(list(leaves(fill(value, "key", ENVIRON))))


def leaves(value: Any) -> Any:
    if isinstance(value, str):
        yield value
    else:
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)


@given(st.text())
def test_text_without_a_variable_is_untouched(text: str) -> None:
    assert fill(text, "key", {}) == text or "{{" in text


def test_a_missing_variable_is_named_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text("infer_params:\n  saas.api_key: ENV {{NO_SUCH}}\n")
    with pytest.raises(InvalidInput) as caught:
        load_flags(str(file), ["infer_params"], ENVIRON)
    message = str(caught.value)
    assert "saas.api_key of infer_params" in message
    assert "NO_SUCH is not set" in message
    assert "deploy.yaml" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"just words", "must have one 'flag: value' a line"),
        (b"- a\n- b\n", "must have one 'flag: value' a line"),
        (b"model: m\n  bad: [1, 2\n", "line 2, column 6"),
        (b"model: 'm\n", "line 2, column 1"),
        (b"model: m\n\ttab: 1\n", "line 2, column 1"),
        (b"a: &a [*a]\n", "line 1, column 4"),
        (b"? [x]\n: y\n", "line 1, column 3"),
        (b"model: m\n---\nmodel: n\n", "line 2, column 1"),
        (b"model: \xff\xfe\n", "is not UTF-8 text"),
        (b"model: \x00\n", "this is no YAML"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        load_flags(str(file), ["model"], {})
    assert said in caught.value.message
    assert "deploy.yaml" in caught.value.message


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Is a directory"):
        load_flags(str(tmp_path), ["model"], {})
