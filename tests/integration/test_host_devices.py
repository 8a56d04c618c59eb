"""What lies on which GPU, checked without any (``tests/device_checks.py``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.engines import run_checks

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)


def test_a_model_on_two_gpus_is_batched_and_a_step_seldom_waits(random_hf: Path) -> None:
    assert run_checks("transformers", "device_checks.py", random_hf, seconds=300) == "whole"
