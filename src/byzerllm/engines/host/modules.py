"""An engine's modules, and whether they can be imported: ``python -m ... NAME ...`` ends with what is wrong."""

from __future__ import annotations

import ctypes
import importlib
import sys
import sysconfig
from pathlib import Path
from typing import Any

from byzerllm.engines.recipes import RECIPES


def load(name: str) -> Any:
    """The module, imported after those libraries of NVIDIA's that are in the environment for it: it looks for them on
    the system only, but takes what is loaded already.

    Raises:
        ImportError: it cannot be imported.
        OSError: a library cannot be loaded.
    """
    folder = Path(sysconfig.get_path("purelib"), "nvidia")
    for recipe in RECIPES.values():
        if recipe.gpu_builds and name in recipe.modules:
            for library in recipe.gpu_builds.libraries:
                for path in folder.glob(f"*/lib/{library}"):
                    ctypes.CDLL(str(path))
    return importlib.import_module(name)


def main() -> None:
    for name in sys.argv[1:]:
        try:
            load(name)
        except Exception as error:  # noqa: BLE001  # of any kind: it is what was asked
            sys.exit(f"{name} cannot be imported: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
