"""How a module of ours is run by the interpreter of an engine's own environment, where we are not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import byzerllm

# At the end of the search path: in front, the server's other packages would take the place of the engine's own.
_RUN = "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_module(sys.argv.pop(1), None, '__main__', True)"


def host_command(python: str, module: str) -> tuple[str, ...]:
    """The command that runs ``module`` as ``python -m`` does. The module may import from us only what needs nothing
    beside the standard library and what the engine's environment has."""
    if python == sys.executable:
        return python, "-m", module
    return python, "-c", _RUN, str(Path(byzerllm.__file__).resolve().parents[1]), module
