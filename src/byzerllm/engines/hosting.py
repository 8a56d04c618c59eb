"""How a module of ours is run by the interpreter of an engine's own environment, where we are not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import byzerllm

OPTIONS_VARIABLE = "BYZERLLM_ENGINE"  # a host is told all in this one, since others can read a process's arguments

# At the end of the search path: in front, the server's other packages would take the place of the engine's own. For the
# same reason the server's PYTHONPATH is ignored (-I), and gone before the engine starts an interpreter of its own.
_RUN = """
import os, runpy, sys
os.environ.pop("PYTHONPATH", None)
os.environ.pop("PYTHONHOME", None)
sys.path.append(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), None, "__main__", True)
"""


def host_command(python: str, module: str) -> tuple[str, ...]:
    """The command that runs ``module`` as ``python -m`` does. The module may import from us only what needs nothing
    beside the standard library and what the engine's environment has. A host that starts more processes calls this
    too: they are then run as it was."""
    if python == sys.executable and not sys.flags.isolated:
        return python, "-m", module
    return python, "-I", "-c", _RUN, str(Path(byzerllm.__file__).resolve().parents[1]), module
