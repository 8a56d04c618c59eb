"""Making and removing an engine's environment. All of it blocks, for minutes: it is for the command line."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from byzerllm.engines import vllm_installed
from byzerllm.engines.environments import (
    MARKER,
    Environment,
    Environments,
    built_for_gpus,
    cannot_run,
    current_device,
    versions,
)
from byzerllm.engines.hosting import host_command
from byzerllm.engines.recipes import CPU_INDEX, Recipe, pinned, recipe
from byzerllm.errors import Conflict, EngineMissing, InvalidInput, NotFound

Tell = Callable[[str], None]

_LAST_LINES = 8
_LONGEST_HALF = 130  # characters
_PIP_ERROR = "ERROR: "
_UNREACHABLE = "Retrying (Retry("  # pip's word on a connection that failed; its errors are of what it then lacks
_TRIAL = "byzerllm.engines.host.modules"
_OWN_SOURCE = ("extra-index-url", "find-links", "no-index")  # pip's settings that say where to look beyond its index


@dataclass(frozen=True)
class Installer:
    """Installs into ``environments``; the output of the latest installation of each engine is kept in ``logs``. Told is
    what is being done, and by ``warn`` what somebody has to know afterwards."""

    environments: Environments
    logs: Path
    tell: Tell
    warn: Tell

    def install(self, engine: str, version: str = "") -> tuple[Environment, bool]:
        """Make the engine's environment; returns it, and whether there was anything to do. Without ``version`` it is to
        hold what was tested, so one that an earlier release of ours made may be replaced; so is one that is broken, or
        that was made when the machine had no GPU.

        An earlier one stays until the new one is complete, and comes back if it does not get there.

        Raises:
            InvalidInput: the engine cannot run on this machine.
            Conflict: another command installs it, or it is in use.
            EngineMissing: the installation failed; has the last lines of its output.
        """
        obstacle = cannot_run(engine)
        if obstacle:
            raise InvalidInput(f"The engine {engine} cannot be installed here: {obstacle}.", param="name")
        device = current_device()
        chosen = recipe(engine, cuda=device == "cuda")
        path = self.environments.path(engine)
        with _lock(path):
            aside = path.with_name(f".{engine}.before")
            if aside.exists():  # an installation was killed
                _settle(path, aside)
            found = self.environments.find(engine)
            if found is not None and (found.runs, found.device) == (chosen.runs(version), device):
                if _works(found, chosen):
                    self._tell_of_cpu_build(found)
                    return found, False
                self.tell(f"the environment in {path} is broken: it is made anew")
            _refuse_used(engine, path)
            with _put_aside(path, aside):
                self._build(engine, chosen, version, device)
        made = self.environments.find(engine)
        assert made is not None
        return made, True

    def remove(self, engine: str) -> None:
        """Delete the engine's environment, complete or not.

        Raises:
            NotFound: there is none.
            Conflict: another command installs it, or it is in use.
        """
        path = self.environments.path(engine)
        if not path.exists():
            raise NotFound(
                f"The engine {engine} has no environment in {path.parent}.", hint="See: byzerllm engine list"
            )
        with _lock(path):
            _refuse_used(engine, path)
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)

    def _build(self, engine: str, chosen: Recipe, version: str, device: str) -> None:
        path = self.environments.path(engine)
        python = str(path / "bin" / "python")
        self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        run = _Runs(engine, self.logs / f"engine-{engine}.log", _variables(chosen), self.tell)
        run.log.unlink(missing_ok=True)
        self.tell(f"making an environment in {path}")
        run(
            [sys.executable, "-m", "venv", str(path)],
            "Is the module venv there? On Debian: apt-get install python3-venv",
        )
        sources = cpu_index(python, run.variables) if chosen.has_torch and device == "cpu" else []
        no_gpu = ""
        if chosen.gpu_builds and device == "cuda":
            no_gpu = self._install_for_gpus(run, python, chosen, version)
        else:
            self._install(run, python, chosen, version, sources)
        for package, use in chosen.extras.items():
            try:
                self._pip(run, python, ["install", "--no-deps", pinned(package)], sources)
                run(_trial(python, *chosen.modules, package))
            except EngineMissing:
                self._pip(run, python, ["uninstall", "--yes", package])
                self.warn(f"left out: {package}, of which no build works here. It is needed for {use}.")
        if engine == "vllm" and (trouble := vllm_installed.learn_names(python)):
            self.warn(trouble)
        packages = versions(python)
        said = Environment(engine, path, packages[chosen.main], device, chosen.runs(version), packages)
        fresh = path / f"{MARKER}.new"
        fresh.write_text(json.dumps(said.facts(), indent=2), "utf-8")
        fresh.replace(path / MARKER)
        self._tell_of_cpu_build(said, no_gpu)

    def _install(self, run: _Runs, python: str, chosen: Recipe, version: str, sources: Sequence[str]) -> None:
        for words in chosen.runs(version):
            self._pip(run, python, words, sources)
        self.tell("trying it out")
        missing = dict(chosen.gpu_builds.libraries if chosen.gpu_builds else {})
        while True:
            try:
                run(_trial(python, *chosen.modules))
                return
            except EngineMissing as error:
                library = next((name for name in missing if f"{name}: cannot open" in error.message), None)
                if library is None:
                    raise
                self._pip(run, python, ["install", missing.pop(library)])

    def _install_for_gpus(self, run: _Runs, python: str, chosen: Recipe, version: str) -> str:
        """Install a build for NVIDIA's GPUs from the index that has them, unless pip was told where to look; where it
        cannot be had, or cannot be used, the one for CPUs. Returns why it may be the latter."""
        builds = chosen.gpu_builds
        assert builds is not None
        if _settings(python, run.variables).intersection(("index-url", *_OWN_SOURCE)):
            self._install(run, python, chosen, version, [])
            return "pip's settings say where to look"
        try:
            self._install(run, python, chosen, version, ["--index-url", builds.index])
        except EngineMissing as error:
            brought = sorted({package.partition("=")[0] for package in builds.libraries.values()})
            self._pip(run, python, ["uninstall", "--yes", chosen.main, *brought])
            self._install(run, python, chosen, version, [])
            return error.message.splitlines()[-1]
        return ""

    def _tell_of_cpu_build(self, made: Environment, reason: str = "") -> None:
        builds = recipe(made.engine, cuda=True).gpu_builds
        if builds and made.device == "cuda" and built_for_gpus(str(made.python)) is False:
            self.warn(
                f"this build is for CPUs, and cannot use the machine's GPUs{reason and f' ({reason})'}. Those for GPUs "
                f"are in the index {builds.index}; to try again: byzerllm engine remove {made.engine}, and install"
            )

    def _pip(self, run: _Runs, python: str, words: Sequence[str], sources: Sequence[str] = ()) -> None:
        self.tell(f"pip {' '.join(words)}")
        options = ["--progress-bar", "off", *sources] if words[0] == "install" else []
        run([python, "-m", "pip", "--no-input", words[0], *options, *words[1:]])


@dataclass(frozen=True)
class _Runs:
    """Runs programs one after the other, each line of their output told and kept."""

    engine: str
    log: Path
    variables: Mapping[str, str]
    tell: Tell

    def __call__(self, argv: Sequence[str], hint: str = "") -> None:
        lines: list[str] = []
        with (
            open(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as log,
            subprocess.Popen(
                argv,
                env=self.variables,
                cwd="/",  # what lies in the current folder is not to be imported
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process,
        ):
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    log.write(line)
                    if line.strip():
                        lines = [*lines[1 - _LAST_LINES :], line.rstrip()]
                        self.tell(lines[-1])
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            errors = [line.removeprefix(_PIP_ERROR) for line in lines if line.startswith(_PIP_ERROR)]
            if errors and any(_UNREACHABLE in line for line in lines):
                errors.append("the index could not be reached")
            said = ":\n" + "\n".join(map(_shortened, errors)) if errors else ". Its last lines:\n" + "\n".join(lines)
            raise EngineMissing(
                f"The installation of {self.engine} failed{said}",
                hint=f"{hint + '. ' if hint else ''}The whole output is in {self.log}.",
            )


def _shortened(line: str) -> str:
    """Without the middle of a long line: pip lists all versions that there are, the newest last."""
    return line if len(line) <= 2 * _LONGEST_HALF else f"{line[:_LONGEST_HALF]} ... {line[-_LONGEST_HALF:]}"


def _works(found: Environment, chosen: Recipe) -> bool:
    argv = _trial(str(found.python), *chosen.modules)
    return subprocess.run(argv, env=_variables(chosen), cwd="/", capture_output=True, check=False).returncode == 0


def _trial(python: str, *modules: str) -> tuple[str, ...]:
    """The command that tries whether the modules can be imported."""
    return (*host_command(python, _TRIAL), *modules)


def _variables(chosen: Recipe) -> dict[str, str]:
    """Our own environment; packages that PYTHONPATH leads to would count as installed."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET")}
    return {**inherited, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **chosen.variables}


def cpu_index(python: str, variables: Mapping[str, str]) -> list[str]:
    """pip's option for the builds of torch for CPUs, unless pip was told where to look beyond its index."""
    known = sys.platform != "linux" or _settings(python, variables).intersection(_OWN_SOURCE)
    return [] if known else ["--extra-index-url", CPU_INDEX]


def _settings(python: str, variables: Mapping[str, str]) -> set[str]:
    """The names of all that pip is set to, in variables and files."""
    argv = [python, "-m", "pip", "config", "list"]
    done = subprocess.run(argv, env=dict(variables), cwd="/", capture_output=True, text=True, check=False)
    return {line.partition("=")[0].rpartition(".")[2] for line in done.stdout.splitlines()}


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Conflict(f"Another command is installing or removing the engine {path.name}.") from None
    try:
        yield
    finally:
        os.close(descriptor)  # which also unlocks


@contextlib.contextmanager
def _put_aside(path: Path, aside: Path) -> Iterator[None]:
    """Keep what is complete at ``path`` until the block has made another in its place; what is not complete goes."""
    kept = (path / MARKER).exists()
    if kept:
        path.rename(aside)
    else:
        shutil.rmtree(path, ignore_errors=True)
    try:
        yield
    finally:
        _settle(path, aside)


def _settle(path: Path, aside: Path) -> None:
    """Of the two environments keep the complete one, the newer if both are."""
    if (path / MARKER).exists():
        shutil.rmtree(aside, ignore_errors=True)
        return
    shutil.rmtree(path, ignore_errors=True)
    if aside.exists():
        aside.rename(path)


def _refuse_used(engine: str, path: Path) -> None:
    users = [process.info["pid"] for process in psutil.process_iter(["pid", "cmdline"]) if _runs_in(process, path)]
    if users:
        raise Conflict(
            f"The engine {engine} is in use, by process {', '.join(map(str, users))}.",
            hint="Undeploy its instances first; byzerllm list shows them.",
        )


def _runs_in(process: psutil.Process, path: Path) -> bool:
    words = process.info["cmdline"] or [""]
    return bool(words[0].startswith(f"{path}{os.sep}"))
