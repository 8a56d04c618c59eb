"""Where engines are installed: each in an environment of its own below ``$BYZERLLM_HOME/engines/``, as they pin each
other's neighbours, or in the server's own.

An environment is used once it has the file ``installed.json``, which ``installation.py`` writes last.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import mmap
import os
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byzerllm.engines.recipes import RECIPES, distributions, recipe
from byzerllm.errors import EngineMissing

MARKER = "installed.json"
_DRIVER = Path("/proc/driver/nvidia/version")
_GPU_CODE = re.compile(rb"ggml_backend_(?:cuda|vk|metal|sycl)_")  # HIP's has CUDA's names


@dataclass(frozen=True)
class Environment:
    """A complete environment of an engine's own.

    ``device`` is what it was made for, ``cpu`` or ``cuda``, ``runs`` what pip was told, ``packages`` what came of it.
    """

    engine: str
    path: Path
    version: str
    device: str
    runs: list[list[str]]
    packages: Mapping[str, str]

    @classmethod
    def read(cls, engine: str, path: Path) -> Environment:
        """What the marker in ``path`` says.

        Raises:
            OSError: there is none.
            ValueError, KeyError, TypeError: it is damaged.
        """
        said: dict[str, Any] = json.loads((path / MARKER).read_text("utf-8"))
        return cls(engine, path, said["version"], said["device"], said["pip"], said["packages"])

    def facts(self) -> dict[str, Any]:
        """What the marker is to say."""
        return {
            "version": self.version,
            "device": self.device,
            "pip": self.runs,
            "packages": dict(sorted(self.packages.items())),
        }

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"


class Environments:
    """The environments in one folder. Methods read the disk, for some ms."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, engine: str) -> Path:
        """Where the engine's own environment is, or would be."""
        return self.folder / engine

    def find(self, engine: str) -> Environment | None:
        """The engine's own environment; None if there is none, or one whose installation did not come to its end."""
        try:
            found = Environment.read(engine, self.path(engine))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if os.access(found.python, os.X_OK) else None

    def python(self, engine: str) -> str:
        """The interpreter that runs the engine, where it is installed at all."""
        found = self.find(engine)
        return str(found.python) if found else sys.executable

    def interpreter(self, engine: str) -> str:
        """The interpreter that runs the engine.

        Raises:
            EngineMissing: it is installed nowhere; the hint is the command that does it.
        """
        found = self.find(engine)
        if found is not None:
            return str(found.python)
        if in_current(engine):
            return sys.executable
        raise EngineMissing(f"The engine {engine} is not installed.", hint=f"Run: byzerllm engine install {engine}")

    def report(self, engine: str) -> dict[str, Any]:
        """What ``byzerllm engine list`` says of one engine."""
        found = self.find(engine)
        if found is not None:
            place, version, device = "own environment", found.version, found.device
        elif in_current(engine):
            place, version, device = "current environment", _current_version(engine), current_device()
        else:
            unfinished = self.path(engine).exists()
            place, version, device = "incomplete" if unfinished else "missing", "", current_device()
        if version and RECIPES[engine].gpu_builds and has_nvidia():
            device = "cpu" if built_for_gpus(self.python(engine)) is False else "cuda"
        obstacle = cannot_run(engine)
        return {
            "name": engine,
            "version": version,
            "where": place,
            "path": str(found.path) if found else sys.prefix if place == "current environment" else "",
            "device": "" if obstacle else device,
            "obstacle": obstacle,
            "packages": dict(found.packages) if found else {},
        }


def in_current(engine: str) -> bool:
    """Whether the interpreter that runs this has the engine; imports nothing."""
    return all(importlib.util.find_spec(module) is not None for module in RECIPES[engine].modules)


def has_nvidia() -> bool:
    """Whether this machine has a driver of NVIDIA's."""
    return _DRIVER.exists() or shutil.which("nvidia-smi") is not None


def current_device() -> str:
    """What an installation made now would be for."""
    return "cuda" if has_nvidia() else "cpu"


def cannot_run(engine: str) -> str:
    """Why the engine cannot run on this machine, with this Python; empty if it can."""
    chosen = recipe(engine, cuda=has_nvidia())
    if sys.platform not in chosen.systems:
        return f"it runs on {' and '.join(chosen.systems)}, and this is {sys.platform}"
    first, last = chosen.pythons
    if not first <= sys.version_info[:2] <= last:
        return (
            f"it needs Python {first[0]}.{first[1]} to {last[0]}.{last[1]}, "
            f"and this is {sys.version_info[0]}.{sys.version_info[1]}"
        )
    return ""


def packages_folders(python: str) -> list[Path]:
    """Where an interpreter has its packages; it is not started."""
    if python == sys.executable:
        return [Path(folder) for folder in sys.path]
    return sorted(Path(python).parents[1].glob("lib/python3*/site-packages"))


def built_for_gpus(python: str) -> bool | None:
    """Whether the xllamacpp of that interpreter has code for GPUs; None where that cannot be told. Reads its library,
    for some tenths of a second."""
    for folder in packages_folders(python):
        for library in (folder / "xllamacpp").glob("*.so"):
            with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _GPU_CODE.search(data) is not None
    return None


def versions(python: str) -> dict[str, str]:
    """The distributions that an interpreter's environment has, by normalised name; the interpreter is not started."""
    # Of one that is there twice the first is imported.
    found = reversed(list(importlib.metadata.distributions(path=[str(folder) for folder in packages_folders(python)])))
    named = ((dist.metadata["Name"], dist.version) for dist in found)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in named if name}


def _current_version(engine: str) -> str:
    for name in distributions(engine):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""
