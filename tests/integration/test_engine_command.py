"""``byzerllm engine``: real environments, real pip; the packages are made here, and nothing is fetched."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil
import pytest
from tests.harness import Byzer, eventually, free_port

from byzerllm.engines import environments, installation
from byzerllm.engines.environments import Environments
from byzerllm.engines.installation import Installer, cpu_index
from byzerllm.engines.recipes import CPU_INDEX, RECIPES, TESTED

VERSION = TESTED["xllamacpp"].version
# It lasts until it is killed, so that a test can meet the installation that tries it out.
SLOW = "import time\ntime.sleep(600)\n"

pytestmark = pytest.mark.timeout(240)  # an environment takes some seconds, on a busy machine many


def make_wheel(
    folder: Path, version: str, code: str = "", name: str = "xllamacpp", files: Mapping[str, bytes] | None = None
) -> None:
    """A package, by default in the place of llama.cpp's."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, content in {f"{name}/__init__.py": code.encode(), **(files or {})}.items():
            wheel.writestr(path, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


class Engines(Byzer):
    """A home whose pip knows the wheels in one folder and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.wheels = folder / "wheels"
        super().__init__(
            folder / "home",
            PIP_NO_INDEX="1",
            PIP_FIND_LINKS=str(self.wheels),
            PIP_EXTRA_INDEX_URL="",
            PIP_CONFIG_FILE=os.devnull,
        )
        make_wheel(self.wheels, VERSION)

    @property
    def path(self) -> Path:
        return self.home / "engines" / "llama_cpp"

    def install(self, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("engine", "install", "llama_cpp", *more, code=code, timeout=200)

    def listed(self) -> tuple[str, str]:
        """Where llama_cpp is, and which version."""
        (found,) = (e for e in self.json("engine", "list") if e["name"] == "llama_cpp")
        return found["where"], found["version"]


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    return Engines(tmp_path)


@pytest.fixture(autouse=True)
def _stopped(engines: Engines) -> object:
    yield
    engines.stop()


def test_an_engine_is_installed_listed_and_removed(engines: Engines) -> None:
    assert engines.listed()[0] == "current environment"
    done = engines.install()
    assert done.stdout == f"Engine llama_cpp {VERSION} installed\n"
    assert f"llama_cpp: pip install xllamacpp=={VERSION}\n" in done.stderr
    assert f"llama_cpp: Successfully installed xllamacpp-{VERSION}\n" in done.stderr, "each line of pip's"
    assert engines.listed() == ("own environment", VERSION)
    assert (engines.path / "bin" / "python").exists()
    assert "Successfully installed" in (engines.home / "logs" / "engine-llama_cpp.log").read_text()

    assert engines.install().stdout == f"Engine llama_cpp {VERSION} is already installed\n"

    package = next(engines.path.glob("lib/python3*/site-packages/xllamacpp/__init__.py"))
    package.write_text("raise ImportError('damaged')")
    repaired = engines.install()
    assert repaired.stdout == f"Engine llama_cpp {VERSION} installed\n"
    assert "is broken: it is made anew" in repaired.stderr
    assert package.read_text() == ""

    marker = engines.path / "installed.json"
    marker.write_text(marker.read_text().replace('"cpu"', '"cuda"'))
    assert engines.install().stdout == f"Engine llama_cpp {VERSION} installed\n", "it was made for another device"

    argv = [str(engines.path / "bin" / "python"), "-c", "input()"]
    with subprocess.Popen(argv, env=engines.env(), stdin=subprocess.PIPE) as worker:
        refused = engines.run("engine", "remove", "llama_cpp", code=1)
        worker.kill()
    assert f"The engine llama_cpp is in use, by process {worker.pid}." in refused.stderr

    assert engines.run("engine", "remove", "llama_cpp").stdout == "Engine llama_cpp removed\n"
    assert not engines.path.exists()
    assert engines.listed()[0] == "current environment"
    assert "has no environment" in engines.run("engine", "remove", "llama_cpp", code=1).stderr


def test_another_version_takes_its_place_and_one_that_is_not_there_does_not(engines: Engines) -> None:
    make_wheel(engines.wheels, "7.0")
    make_wheel(engines.wheels, "8.0", "raise ImportError('this build is for another processor')")
    assert engines.install("--version", "7.0").stdout == "Engine llama_cpp 7.0 installed\n"
    missing = engines.install("--version", "9.9", code=1)
    said = missing.stderr.partition("byzerllm: error: The installation of llama_cpp failed:\n")[2].splitlines()
    assert said[0].startswith("Could not find a version that satisfies the requirement xllamacpp==9.9 (from versions")
    assert said[1] == "No matching distribution found for xllamacpp==9.9"
    assert f"The whole output is in {engines.home / 'logs' / 'engine-llama_cpp.log'}" in missing.stderr
    assert engines.listed() == ("own environment", "7.0"), "the one that works stays"
    broken = engines.install("--version", "8.0", code=1).stderr
    assert "xllamacpp cannot be imported: ImportError: this build is for another processor" in broken
    assert engines.listed() == ("own environment", "7.0")
    assert sorted(p.name for p in engines.path.parent.iterdir()) == [".llama_cpp.lock", "llama_cpp"]


def tried_out(engines: Engines) -> bool:
    for process in engines.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            if words[1:3] == ["-I", "-c"] and words[-1] == "xllamacpp":
                return True
    return False


def test_a_killed_installation_is_never_used_and_done_anew(engines: Engines) -> None:
    make_wheel(engines.wheels, VERSION, SLOW)
    make_wheel(engines.wheels, "7.0", SLOW)
    with engines.background("engine", "install", "llama_cpp") as command:
        eventually(lambda: tried_out(engines), 180)
        taken = engines.run("engine", "install", "llama_cpp", code=1)
        assert "Another command is installing or removing the engine llama_cpp." in taken.stderr
        command.kill()
    engines.stop()
    assert engines.listed()[0] == "current environment"
    make_wheel(engines.wheels, VERSION)
    assert engines.install().stdout == f"Engine llama_cpp {VERSION} installed\n"

    with engines.background("engine", "install", "llama_cpp", "--version", "7.0") as command:
        eventually(lambda: tried_out(engines), 180)
        command.kill()
    engines.stop()
    assert engines.install().stdout == f"Engine llama_cpp {VERSION} is already installed\n", "the earlier one is back"
    assert engines.listed() == ("own environment", VERSION)


def test_an_interrupted_installation_leaves_nothing(engines: Engines) -> None:
    make_wheel(engines.wheels, VERSION, SLOW)
    with engines.background("engine", "install", "llama_cpp") as command:
        eventually(lambda: tried_out(engines), 180)
        command.send_signal(signal.SIGINT)
        assert command.wait(30) == 130
    eventually(lambda: engines.processes() == [])
    assert not engines.path.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("install",), "Which engine? byzerllm engine install NAME"),
        (("install", "lama_cpp"), "Did you mean llama_cpp?"),
        (("list", "vllm"), "byzerllm engine list shows all engines"),
        (("remove", "vllm", "--version", "1"), "--version is for byzerllm engine install"),
        (("update", "vllm"), "must be one of: install, list, remove"),
    ],
)
def test_wrong_usage_is_explained(engines: Engines, words: tuple[str, ...], said: str) -> None:
    assert said in engines.run("engine", *words, code=2).stderr


def test_a_home_that_cannot_be_used_is_named(engines: Engines) -> None:
    engines.home.mkdir()
    (engines.home / "engines").write_text("in the way")
    refused = engines.run("engine", "install", "llama_cpp", code=1)
    assert str(engines.home / "engines") in refused.stderr


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, ["--extra-index-url", CPU_INDEX]),
        ({"PIP_INDEX_URL": "https://mirror.example/simple"}, ["--extra-index-url", CPU_INDEX]),
        ({"PIP_FIND_LINKS": "/opt/wheels"}, []),
        ({"PIP_EXTRA_INDEX_URL": "https://other.example/simple"}, []),
    ],
)
def test_builds_for_cpus_are_looked_for_at_pytorch_unless_pip_has_another_source(
    settings: dict[str, str], options: list[str]
) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    assert cpu_index(sys.executable, {**environ, "PIP_CONFIG_FILE": os.devnull, **settings}) == options


@pytest.mark.parametrize("code", ["", "raise RuntimeError('operator more::nms does not exist')", None])
def test_an_extra_package_is_left_out_if_no_build_of_it_works(
    code: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    make_wheel(wheels, VERSION)
    if code is not None:
        make_wheel(wheels, "1.0", code, name="more")
    for name, value in {
        "NO_INDEX": "1",
        "FIND_LINKS": wheels,
        "EXTRA_INDEX_URL": "",
        "CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    chosen = replace(RECIPES["llama_cpp"], extras={"more": "the rest"})
    monkeypatch.setattr(installation, "recipe", lambda *_args, **_more: chosen)
    said: list[str] = []
    installer = Installer(Environments(tmp_path / "engines"), tmp_path / "logs", print, said.append)
    made, _ = installer.install("llama_cpp")
    assert made.version == VERSION
    assert ("more" in made.packages) == (code == "")
    assert said == ([] if code == "" else ["left out: more, of which no build works here. It is needed for the rest."])


def make_index(folder: Path) -> str:
    """The address of an index with the wheels in the folder."""
    for wheel in folder.glob("*.whl"):
        project = folder / re.sub("[-_.]+", "-", wheel.name.partition("-")[0])
        project.mkdir()
        (project / "index.html").write_text(f'<a href="../{wheel.name}">{wheel.name}</a>')
    return folder.as_uri()


LIBRARY = "xllamacpp/xllamacpp.abi3.so"
NEEDS_CUDA = """
if "/libcudart.so.12" not in open("/proc/self/maps").read():
    raise ImportError("libcudart.so.12: cannot open shared object file: No such file or directory")
"""
NO_DRIVER = "raise ImportError('libcuda.so.1: cannot open shared object file')"
FOR_CPUS = "this build is for CPUs, and cannot use the machine's GPUs"


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Installer, list[str]]:
    """Installs on a machine with a GPU, where PyPI has the build for CPUs and a library of NVIDIA's; and the warnings.
    The builds for GPUs are in the index in the folder ``gpu``."""
    make_wheel(tmp_path / "pypi", VERSION, files={LIBRARY: b"ggml_backend_cpu_reg"})
    library = {"nvidia/cuda_runtime/lib/libcudart.so.12": Path(msgspec._core.__file__).read_bytes()}
    make_wheel(tmp_path / "pypi", "12.8.90", name="nvidia_cuda_runtime_cu12", files=library)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", make_index(tmp_path / "pypi"))
    monkeypatch.setattr(environments, "has_nvidia", lambda: True)
    chosen = RECIPES["llama_cpp"]
    assert chosen.gpu_builds is not None
    builds = replace(chosen.gpu_builds, index=(tmp_path / "gpu").as_uri())
    monkeypatch.setattr(installation, "recipe", lambda *_args, **_more: replace(chosen, gpu_builds=builds))
    said: list[str] = []
    return Installer(Environments(tmp_path / "engines"), tmp_path / "logs", print, said.append), said


@pytest.mark.parametrize(
    ("code", "why_not"),
    [
        ("", None),
        (NEEDS_CUDA, None),
        (NO_DRIVER, "xllamacpp cannot be imported: ImportError: libcuda.so.1: cannot open"),
        (None, f"No matching distribution found for xllamacpp=={VERSION}"),
    ],
)
def test_a_machine_with_a_gpu_gets_a_build_that_can_use_it_where_there_is_one(
    code: str | None,
    why_not: str | None,
    installer: tuple[Installer, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if code is not None:
        make_wheel(tmp_path / "gpu", VERSION, code, files={LIBRARY: b"ggml_backend_cuda_reg"})
        make_index(tmp_path / "gpu")
    monkeypatch.setattr(installation, "_settings", lambda *_: set())  # what leads to our index is no setting of a user
    installs, told = installer
    made, new = installs.install("llama_cpp")
    assert new
    assert installs.environments.report("llama_cpp")["device"] == ("cpu" if why_not else "cuda")
    assert ("nvidia-cuda-runtime-cu12" in made.packages) == (code == NEEDS_CUDA)
    assert len(told) == (1 if why_not else 0)
    assert all(warning.startswith(f"{FOR_CPUS} ({why_not}") for warning in told)
    told.clear()
    assert installs.install("llama_cpp") == (made, False)
    assert [warning.startswith(f"{FOR_CPUS}. ") for warning in told] == ([True] if why_not else [])


def test_an_index_that_cannot_be_reached_is_named_as_the_reason(
    installer: tuple[Installer, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = RECIPES["llama_cpp"]
    assert chosen.gpu_builds is not None
    builds = replace(chosen.gpu_builds, index=f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setattr(installation, "recipe", lambda *_args, **_more: replace(chosen, gpu_builds=builds))
    monkeypatch.setattr(installation, "_settings", lambda *_: set())
    monkeypatch.setenv("PIP_RETRIES", "1")
    installs, told = installer
    installs.install("llama_cpp")
    assert told[0].startswith(f"{FOR_CPUS} (the index could not be reached)")


def test_where_pip_is_told_to_look_it_looks_and_nowhere_else(
    installer: tuple[Installer, list[str]], tmp_path: Path
) -> None:
    make_wheel(tmp_path / "gpu", VERSION, files={LIBRARY: b"ggml_backend_cuda_reg"})
    make_index(tmp_path / "gpu")
    installs, told = installer
    installs.install("llama_cpp")
    assert installs.environments.report("llama_cpp")["device"] == "cpu"
    (warning,) = told
    assert warning.startswith(f"{FOR_CPUS} (pip's settings say where to look). ")
