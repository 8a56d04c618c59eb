"""``byzerllm scale``: more or fewer workers of an instance, without disturbing those that stay."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from byzerllm.cli.flags import MODEL, WHOLE, Flag
from byzerllm.client.launch import connect
from byzerllm.errors import InvalidInput
from byzerllm.spec import MAX_WORKERS

if TYPE_CHECKING:
    import argparse

    from byzerllm.cli.console import Console
    from byzerllm.settings import Settings

FLAGS = (MODEL, Flag("num_workers", WHOLE, default=None, required=True))


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> int:
    name, count = arguments.model, arguments.num_workers
    if not 1 <= count <= MAX_WORKERS:
        raise InvalidInput(
            f"--num_workers {count} must be at least 1 and at most {MAX_WORKERS}.",
            hint=f"byzerllm undeploy --model {name} removes the instance." if count == 0 else None,
            param="num_workers",
        )
    connect(settings).operation(
        "POST",
        f"/admin/deployments/{quote(name, safe='')}/scale",
        {"num_workers": count},
        final=("ready", "unchanged"),
        notify=partial(console.event, name),
        lost_hint=f"Run byzerllm stat --model {name} to see what became of it.",
    )
    console.data(f"Model {name} scaled to {count} {'worker' if count == 1 else 'workers'}")
    return 0
