"""``byzerllm list``: what is deployed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from byzerllm.cli.console import table
from byzerllm.client.launch import connect

if TYPE_CHECKING:
    import argparse

    from byzerllm.cli.console import Console
    from byzerllm.cli.flags import Flag
    from byzerllm.settings import Settings

FLAGS: tuple[Flag, ...] = ()


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> int:
    deployments = connect(settings).get("/admin/deployments")["deployments"]
    if not console.out_is_terminal:
        console.json(deployments)
        return 0
    rows = [
        (
            d["name"],
            d["pretrained_model_type"],
            d["infer_backend"],
            d["task"],
            d["model"],
            f"{d['ready_workers']}/{d['num_workers']}",
            d["state"],
            (d["reason"] or "").partition("\n")[0],
        )
        for d in deployments
    ]
    console.data(table(("MODEL", "TYPE", "BACKEND", "TASK", "UPSTREAM MODEL", "WORKERS", "STATE", "REASON"), rows))
    return 0
