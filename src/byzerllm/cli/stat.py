"""``byzerllm stat``: the state of one instance's workers, or of all instances."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from byzerllm.cli.console import table
from byzerllm.cli.flags import NUMBER, SWITCH, Flag
from byzerllm.client.launch import connect
from byzerllm.errors import InvalidInput

if TYPE_CHECKING:
    import argparse

    from byzerllm.cli.console import Console
    from byzerllm.client.admin import AdminClient
    from byzerllm.settings import Settings

FLAGS = (Flag("model"), Flag("interval", NUMBER, default=0), Flag("detail", SWITCH, False))


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> int:
    if not 0 <= arguments.interval < 1e6:
        raise InvalidInput(f"--interval {arguments.interval:g} must be a number of seconds.", param="interval")
    client = connect(settings)
    _show(arguments, console, client)
    try:
        while arguments.interval:
            time.sleep(arguments.interval)
            _show(arguments, console, client)
    except KeyboardInterrupt:
        pass  # how watching ends
    return 0


def _show(arguments: argparse.Namespace, console: Console, client: AdminClient) -> None:
    if arguments.model:
        path = f"/admin/deployments/{quote(arguments.model, safe='')}/stat?detail={arguments.detail:d}"
        return console.json(client.get(path))
    deployments = client.get("/admin/deployments")["deployments"]
    if not console.out_is_terminal:
        return console.json(deployments)
    rows = [
        (
            d["name"],
            d["state"],
            f"{d['ready_workers']}/{d['num_workers']}",
            f"{d['slots_free']}/{d['slots_total']}",
            d["queued"],
            d["total_requests"],
            d["load_balance"],
        )
        for d in deployments
    ]
    console.data(table(("MODEL", "STATE", "WORKERS", "FREE SLOTS", "QUEUED", "REQUESTS", "BALANCE"), rows))
