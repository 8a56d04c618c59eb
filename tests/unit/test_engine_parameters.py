"""How a parameter's text is read, and what is said when it cannot be."""

from __future__ import annotations

import pytest

from byzerllm.engines.hf_parameters import DEEPSPEED, TRANSFORMERS
from byzerllm.engines.llama_cpp_parameters import PARAMETERS
from byzerllm.engines.parameters import PATH, TEXT, Form, Parameter, choice, number, whole
from byzerllm.engines.vllm_arguments import FORMS, MAIN, read
from byzerllm.errors import InvalidInput


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        (whole(1, 512), "513", "p=513 must be at most 512"),
        (whole(1, 512), "0", "p=0 must be at least 1"),
        (whole(1), "many", "must be a whole number"),
        (number(0), "-0.5", "must be at least 0"),
        (choice("cpu", "cuda"), "gpu", "must be one of cpu, cuda"),
        (PATH, "", "p is empty"),
        (PATH, "~no.such.user/a", "p=~no.such.user/a: Could not determine home directory"),
        (TEXT, "", "p is empty"),
    ],
)
def test_a_wrong_value_is_refused_with_the_meaning(form: Form, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as refused:
        Parameter(form, "none", "how far it goes").read("p", text)
    assert refused.value.hint == "p: how far it goes."
    assert refused.value.param == "p"


def test_a_hint_is_plain_text() -> None:
    with pytest.raises(InvalidInput) as refused:
        Parameter(whole(1), "none", "context **of each slot**; 0: as `n_batch` says").read("p", "x")
    assert refused.value.hint == "p: context of each slot; 0: as n_batch says."


def test_a_hint_that_knows_more_stays() -> None:
    with pytest.raises(InvalidInput) as refused:
        PARAMETERS["chat_template"].read("chat_template", "chatty")
    assert refused.value.hint == "Without chat_template the template in the model's own file is used."


def test_what_may_be_given_is_said() -> None:
    assert [whole(1).said, whole(1, 8).said] == ["whole number from 1", "whole number from 1 to 8"]
    assert [number().said, number(0).said] == ["number", "number from 0"]
    assert choice("cpu", "cuda").said == "cpu, cuda"
    assert choice("cpu", "cuda").read("p", " CUDA ") == "cuda"


def test_vllms_arguments_are_explained_too() -> None:
    with pytest.raises(InvalidInput, match=r"backend\.max_model_len='long' must be a whole number") as refused:
        read("max_model_len", "long")
    assert (refused.value.hint or "").startswith("backend.max_model_len: the most tokens")
    assert MAIN.keys() <= FORMS.keys()


def test_a_word_that_is_a_default_may_be_given() -> None:
    tables = {"": PARAMETERS, "backend.": {**TRANSFORMERS, **DEEPSPEED, **MAIN}}
    for prefix, table in tables.items():
        for name, parameter in table.items():
            if " " not in parameter.default and parameter.default != "none" and "`" not in parameter.default:
                parameter.read(prefix + name, parameter.default)
