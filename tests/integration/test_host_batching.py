"""The host's batching and sampling, with real models in the interpreter that has torch (``tests/torch_*checks.py``)."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from tests.engines import python_of

import byzerllm

ROOT = Path(__file__).parents[2]
CHECKS, *MORE_CHECKS = (
    ROOT / "tests" / f"torch_{name}.py"
    for name in (
        "checks",
        "failure_checks",
        "token_checks",
        "image_checks",
        "processor_checks",
        "hearing_checks",
        "sound_checks",
        "making_checks",
    )
)
RUN = """
import runpy, sys
sys.path += sys.argv[1:3]  # behind what the engine has installed
del sys.argv[1:3]
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""

NAMES = [
    name for file in (CHECKS, *MORE_CHECKS) for name in re.findall(r"^def (check_\w+)", file.read_text("utf-8"), re.M)
]
SECONDS = 580

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def outcomes(random_hf: Path) -> dict[str, str]:
    """What is wrong, by the name of the check; all run in one process, whose imports take longer than they."""
    source = Path(byzerllm.__file__).parents[1]
    done = subprocess.run(
        [python_of("transformers"), "-c", RUN, source, ROOT, CHECKS, random_hf, *MORE_CHECKS],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_batching_and_sampling(name: str, outcomes: dict[str, str]) -> None:
    assert outcomes[name] == "", outcomes[name]
