"""``byzerllm engine install|list|remove``: the engines of this machine. Needs no server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from byzerllm.cli.console import table
from byzerllm.cli.flags import Flag, Text
from byzerllm.engines import names
from byzerllm.engines.environments import Environments, has_nvidia
from byzerllm.errors import InvalidInput
from byzerllm.spec import unknown

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from byzerllm.cli.console import Console
    from byzerllm.settings import Settings


class _OptionalWord(Text):
    options: ClassVar[dict[str, Any]] = {"nargs": "?", "metavar": "NAME"}


FLAGS = (
    Flag("action", choices=("install", "list", "remove"), positional=True),
    Flag("name", _OptionalWord(), positional=True),
    Flag("version"),
)

_DEVICES = {"cpu": "yes, on the CPU", "cuda": "yes, on the GPU"}
_CPU_BUILD = "yes, on the CPU only: its build cannot use this machine's GPU"


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> int:
    _check(arguments)
    environments = Environments(settings.engines)
    if arguments.action == "list":
        _list(console, environments)
        return 0
    from byzerllm.engines.installation import Installer

    installer = Installer(
        environments,
        settings.logs,
        tell=lambda line: console.progress(f"{arguments.name}: {line}"),
        warn=lambda line: console.note(f"{arguments.name}: {line}"),
    )
    if arguments.action == "remove":
        installer.remove(arguments.name)
        console.data(f"Engine {arguments.name} removed")
        return 0
    made, new = installer.install(arguments.name, arguments.version)
    console.data(f"Engine {made.engine} {made.version} {'installed' if new else 'is already installed'}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    action, name = arguments.action, arguments.name
    if action == "list" and name:
        raise InvalidInput(f"{name!r} is not expected here: byzerllm engine list shows all engines.", param="name")
    if action != "list" and not name:
        raise InvalidInput(
            f"Which engine? byzerllm engine {action} NAME", hint=f"Known: {', '.join(names())}.", param="name"
        )
    if action != "list" and name not in names():
        raise unknown("engine", name, names(), param="name")
    if action != "install" and arguments.version:
        raise InvalidInput("--version is for byzerllm engine install.", param="version")


def _list(console: Console, environments: Environments) -> None:
    reports = [environments.report(name) for name in names()]
    if not console.out_is_terminal:
        return console.json(reports)
    rows = [(r["name"], r["version"], r["where"], _runs_here(r), r["path"]) for r in reports]
    console.data(table(("ENGINE", "VERSION", "WHERE", "RUNS HERE", "PATH"), rows))


def _runs_here(report: Mapping[str, Any]) -> str:
    if report["device"] == "cpu" and has_nvidia():
        return _CPU_BUILD
    return _DEVICES.get(report["device"], f"no: {report['obstacle']}")
