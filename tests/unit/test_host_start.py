"""Why the host could not load a model, as its log says it."""

from __future__ import annotations

import sys

import pytest

from byzerllm.engines.host import main
from byzerllm.engines.recipes import TESTED

# As transformers 5.23 and torchvision 0.28 say it.
MISSING = ImportError(
    "\nQwen2VLVideoProcessor requires the Torchvision library but it was not found in your environment. Check out the"
    "\ninstructions on the installation page: https://pytorch.org/get-started/locally/"
)
UNSUITED = RuntimeError("operator torchvision::nms does not exist")


@pytest.mark.parametrize("error", [MISSING, UNSUITED])
def test_a_package_that_is_left_out_where_no_build_works_is_named_with_the_command(error: Exception) -> None:
    cause = main.cause_of(error, {"model_path": "/m"})
    assert "needs the package torchvision" in cause
    assert cause.endswith(f"-m pip install --no-deps torchvision=={TESTED['torchvision'].version}")


def test_another_package_is_named_too() -> None:
    cause = main.cause_of(ModuleNotFoundError("No module named 'mistral_common'"), {"model_path": "/m"})
    assert cause == "a package is missing in the engine's environment: No module named 'mistral_common'"


def test_a_package_is_installed_into_the_engines_environment() -> None:
    said = "Package `num2words` is required to run SmolVLM processor. Install it with `pip install num2words`."
    cause = main.cause_of(ImportError(said), {"model_path": "/m"})
    assert cause.endswith(f"Install it with `{sys.executable} -m pip install num2words`.")
