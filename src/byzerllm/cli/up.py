"""``byzerllm up``: start the server and bring back what was deployed before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from byzerllm.client.admin import AdminClient, Event, described_error
from byzerllm.client.launch import ensure_server

if TYPE_CHECKING:
    import argparse

    from byzerllm.cli.console import Console
    from byzerllm.cli.flags import Flag
    from byzerllm.settings import Settings

FLAGS: tuple[Flag, ...] = ()


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> int:
    def notify(event: Event) -> None:
        console.progress(f"{event['model']}: {event['message']}")

    client = AdminClient(ensure_server(settings, console.progress))
    outcome = client.operation(
        "POST",
        "/admin/restore",
        final=("done",),
        notify=notify,
        lost_hint="Run byzerllm list to see what became of the instances.",
    )
    for name in outcome["ready"]:
        console.data(f"Model {name} deployed successfully")
    for name, payload in outcome["failed"].items():
        error = described_error(payload, 500)
        error.message = f"{name}: {error.message}"
        console.error(error)
    if not outcome["ready"] and not outcome["failed"]:
        console.note("Nothing was deployed before.")
    return 1 if outcome["failed"] else 0
