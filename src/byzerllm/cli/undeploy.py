"""``byzerllm undeploy``: drain an instance and remove it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from byzerllm.cli.flags import MODEL, SWITCH, Flag
from byzerllm.client.launch import connect

if TYPE_CHECKING:
    import argparse

    from byzerllm.cli.console import Console
    from byzerllm.settings import Settings

FLAGS = (MODEL, Flag("force", SWITCH, False))


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> int:
    name = arguments.model
    connect(settings).operation(
        "DELETE",
        f"/admin/deployments/{quote(name, safe='')}?force={arguments.force:d}",
        final=("gone",),
        notify=partial(console.event, name),
        lost_hint=f"Run byzerllm stat --model {name} to see what became of it.",
    )
    console.data(f"Model {name} undeployed successfully")
    return 0
