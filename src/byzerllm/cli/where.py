"""Which server a command talks to, and saying so: on this machine, or on a Ray cluster."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from byzerllm.client.admin import answers
from byzerllm.client.locate import locate
from byzerllm.client.server_file import ServerInfo, recorded_server
from byzerllm.errors import ByzerError

if TYPE_CHECKING:
    from byzerllm.cli.console import Console
    from byzerllm.settings import Settings

_OTHERS_LIMIT = 1.0


def choose_server(ray_address: str, console: Console, settings: Settings) -> Settings:
    """The settings with which the command goes on, when ``--ray_address`` has this value.

    Raises:
        InvalidInput: the value is no address.
        ServerUnavailable: no cluster answers at the address.
    """
    where = locate(ray_address, os.environ)
    console.note(str(where))
    on_ray = settings.on_ray(where.cluster)
    if not where.cluster:
        there = _running(on_ray)
        if there is not None:
            address = there.ray_address
            console.note(f"A server on the Ray cluster at {address} runs too: --ray_address {address} talks to it.")
        return settings
    if _running(settings) is not None:
        console.note("A server on this machine alone runs too: --ray_address embedded talks to it.")
    return on_ray


def _running(settings: Settings) -> ServerInfo | None:
    info = recorded_server(settings.server_file)
    with suppress(ByzerError):
        if info is not None and answers(info, _OTHERS_LIMIT):
            return info
    return None
