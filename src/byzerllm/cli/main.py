"""Entry point: finds the command, runs it, and turns every error into one message and an exit code."""

from __future__ import annotations

import importlib
import io
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO, cast

from byzerllm.cli import lang
from byzerllm.cli.console import Console
from byzerllm.errors import ByzerError, InvalidInput
from byzerllm.settings import Settings

if TYPE_CHECKING:
    import argparse

    from byzerllm.cli.flags import Flag

INTERRUPTED = 130  # as a shell reports SIGINT ...
PIPE_CLOSED = 141  # ... and SIGPIPE


class Command(Protocol):
    """A module of this package: its flags, and what it does. It returns the exit code."""

    FLAGS: Sequence[Flag]

    def run(self, arguments: argparse.Namespace, console: Console, settings: Settings) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code is 0 done, 1 failed, 2 wrong usage or input."""
    console = Console(_stream("stdout"), _stream("stderr"))
    try:
        return _run(sys.argv[1:] if argv is None else argv, console)
    except ByzerError as error:
        console.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        console.note("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        _give_up_stdout()
        return PIPE_CLOSED
    except OSError as error:  # a full disk and the like: the machine's state, and no defect of ours
        _give_up_stdout()
        console.note(f"byzerllm: error: {error}")
        return 1
    except Exception as error:  # noqa: BLE001 - a defect: whoever typed the command gets a line and a file, no traceback
        console.note(f"byzerllm: error: unexpected {type(error).__name__}: {error}")
        console.note(f"  This is a defect in byzerllm; the details are in {_crash_file()}.")
        return 1


def _run(words: Sequence[str], console: Console) -> int:
    if not words:
        console.note(_overview())
        return InvalidInput.exit_code
    name = words[0]
    if name in ("-h", "--help", "help"):
        console.data(_overview())
        return 0
    name = "version" if name == "--version" else name
    if name == "storage":
        raise InvalidInput("Byzer Retrieval, the vector storage, is not part of this tool.")
    from byzerllm.cli import arguments  # after --help, which is to be quick

    if name not in lang.COMMANDS:
        from byzerllm.spec import unknown

        raise unknown("command", name, lang.COMMANDS, param="")
    command = cast("Command", importlib.import_module(f"byzerllm.cli.{name}"))
    values = arguments.parse(name, command.FLAGS, words[1:])
    console.note(arguments.banner(name, command.FLAGS, values))
    settings = Settings.read()
    if name != "version":
        from byzerllm.cli.where import choose_server

        settings = choose_server(values.ray_address, console, settings)
    return command.run(values, console, settings)


def _stream(name: str) -> TextIO:
    stream: TextIO | None = getattr(sys, name)
    if stream is None:  # the shell closed it
        return io.TextIOWrapper(io.BytesIO(), "utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a model may say what the terminal cannot show
    return stream


def _give_up_stdout() -> None:
    """Python flushes stdout at exit, which would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _overview() -> str:
    rows = "\n".join(f"  {name:10} {lang.command_help(name)}" for name in lang.COMMANDS)
    return f"usage: byzerllm COMMAND [FLAGS]\n\n{rows}\n\nbyzerllm COMMAND --help lists the flags."


def _crash_file() -> Path:
    """Write the current traceback where it can be found; it holds no values of variables."""
    name = f"byzerllm-crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    home = Path(os.environ.get("BYZERLLM_HOME") or Path.home() / ".byzerllm")
    for folder in (home / "logs", Path(os.environ.get("TMPDIR") or "/tmp")):
        try:
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError:
            continue
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(traceback.format_exc())
        return folder / name
    return Path("nowhere: no folder could be written")
