"""Writes the names of all arguments of the installed vLLM's server into a file, as a JSON list."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

# Where vLLM has had these, the newest first.
_PARSERS = ("vllm.utils.argparse_utils", "vllm.utils")
_MAKERS = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")


def names(parser: Any) -> list[str]:
    """The long option names of an ``argparse`` parser, as identifiers; ``--no-x`` belongs to ``--x``."""
    found = {
        word[2:].replace("-", "_") for action in parser._actions for word in action.option_strings if word[:2] == "--"
    }
    return sorted(name for name in found - {"help"} if not (name.startswith("no_") and name[3:] in found))


def _first(modules: tuple[str, ...], attribute: str) -> Any:
    for module in modules:
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ModuleNotFoundError, AttributeError):
            continue
    raise SystemExit(f"this vLLM has no {attribute} where byzerllm looks for it: {', '.join(modules)}")


def main() -> None:
    """Write the file that the one argument names."""
    parser = _first(_MAKERS, "make_arg_parser")(_first(_PARSERS, "FlexibleArgumentParser")())
    Path(sys.argv[1]).write_text(json.dumps(names(parser)), "utf-8")


if __name__ == "__main__":
    main()
