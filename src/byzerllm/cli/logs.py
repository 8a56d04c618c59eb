"""``byzerllm logs``: what an instance's engine processes wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from byzerllm.cli.flags import MODEL, SWITCH, WHOLE, Flag
from byzerllm.client.launch import connect
from byzerllm.errors import InvalidInput

if TYPE_CHECKING:
    import argparse

    from byzerllm.cli.console import Console
    from byzerllm.settings import Settings

FLAGS = (
    MODEL,
    Flag("follow", SWITCH, False, short="-f"),
    Flag("tail", WHOLE, default=200),
    Flag("worker", WHOLE, default=None),
)


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> int:
    query = {"tail": arguments.tail, "follow": int(arguments.follow)}
    if arguments.tail < 0:
        raise InvalidInput(f"--tail {arguments.tail} must be at least 0.", param="tail")
    if arguments.worker is not None:
        query["worker"] = arguments.worker
    path = f"/admin/deployments/{quote(arguments.model, safe='')}/logs?{urlencode(query)}"
    try:
        for piece in connect(settings).pieces("GET", path):
            console.raw(piece)
    except KeyboardInterrupt:
        if not arguments.follow:
            raise  # while following, it is how one ends
    return 0
