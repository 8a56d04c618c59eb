"""How a module is run by the interpreter of an engine's own environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from byzerllm.engines.hosting import host_command

SHOW = """
import subprocess, sys
print(sys.path, flush=True)
subprocess.run([sys.executable, "-c", "import sys; print(sys.path)"])
"""


def test_the_servers_pythonpath_does_not_reach_the_engine_nor_what_it_starts(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    theirs = tmp_path / "packages"
    theirs.mkdir()
    (theirs / "json.py").write_text("raise ImportError('the server has another one')")
    argv = [*host_command(str(python), "timeit"), "-n1", "-r1", SHOW]
    environ = {**os.environ, "PYTHONPATH": str(theirs)}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=True)
    own, childs = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert str(theirs) not in own + childs
    assert own.endswith(f"'{Path(__file__).parents[2] / 'src'}']"), "we are behind its own packages"
