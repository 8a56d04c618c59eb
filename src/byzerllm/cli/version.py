"""``byzerllm version``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from byzerllm import __version__

if TYPE_CHECKING:
    import argparse

    from byzerllm.cli.console import Console
    from byzerllm.cli.flags import Flag
    from byzerllm.settings import Settings

FLAGS: tuple[Flag, ...] = ()


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> int:
    console.data(__version__)
    return 0
