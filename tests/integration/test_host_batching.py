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

CHECKS, TOKEN_CHECKS = (Path(__file__).parents[1] / name for name in ("torch_checks.py", "torch_token_checks.py"))
RUN = "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_path(sys.argv.pop(1), run_name='__main__')"


NAMES = re.findall(r"^def (check_\w+)", CHECKS.read_text("utf-8") + TOKEN_CHECKS.read_text("utf-8"), re.MULTILINE)
SECONDS = 580

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def outcomes(random_hf: Path) -> dict[str, str]:
    """What is wrong, by the name of the check; all run in one process, whose imports take longer than they."""
    source = Path(byzerllm.__file__).parents[1]
    done = subprocess.run(
        [python_of("transformers"), "-c", RUN, source, CHECKS, random_hf, TOKEN_CHECKS],
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
