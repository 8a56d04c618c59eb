"""From the words of a command line to its flags' values: typed words win over ``--file``, that over defaults."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from byzerllm.cli import lang
from byzerllm.cli.flags import COMMON, Flag
from byzerllm.errors import InvalidInput
from byzerllm.spec import unknown

_NO_TEXT = re.compile("[\ud800-\udfff]")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInput(f"{message}.", hint=f"See {self.prog} --help.")


def parse(command: str, flags: Sequence[Flag], words: Sequence[str]) -> argparse.Namespace:
    """The value of every flag of ``command``, under its name.

    Raises:
        InvalidInput: what was typed, or the file, is wrong.
    """
    flags = (*flags, *COMMON)
    typed = vars(_parse_words(command, flags, words))
    in_file = _from_file(typed["file"], flags) if typed.get("file") else {}
    return argparse.Namespace(**{flag.name: _value(flag, typed, in_file) for flag in flags})


def banner(command: str, flags: Sequence[Flag], arguments: argparse.Namespace) -> str:
    """What the command is about to do, flag by flag, without secrets."""
    rule = "-" * 50
    rows = [("command", command)]
    rows += [(flag.name, flag.kind.show(getattr(arguments, flag.name))) for flag in (*flags, *COMMON)]
    return "\n".join(["Command Line Arguments:", rule, *(f"{name:20}: {text}" for name, text in rows), rule])


def normalise(words: Sequence[str]) -> list[str]:
    """The same words with ``-`` as ``_`` in the names of flags, which may be written either way."""
    result = []
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            word = f"--{name[2:].replace('-', '_')}{equals}{value}"
        result.append(word)
    return result


def _parse_words(command: str, flags: Sequence[Flag], words: Sequence[str]) -> argparse.Namespace:
    """Only the flags that were typed, not converted yet."""
    parser = _Parser(
        f"byzerllm {command}",
        description=lang.command_help(command),
        argument_default=argparse.SUPPRESS,
    )
    for flag in flags:
        options = {**flag.kind.options, "help": _help(command, flag)}
        if flag.choices:
            options["metavar"] = "|".join(flag.choices)
        names = [flag.name] if flag.positional else [f"--{flag.name}", *([flag.short] if flag.short else [])]
        parser.add_argument(*names, **options)
    typed, rest = parser.parse_known_args(normalise(words))
    if rest:
        if rest[0].startswith("--"):
            raise unknown("flag", rest[0].partition("=")[0], [f"--{flag.name}" for flag in flags], param="")
        raise InvalidInput(f"{rest[0]!r} is not expected here.", hint=f"See byzerllm {command} --help.")
    return typed


def _help(command: str, flag: Flag) -> str:
    text = lang.flag_help(command, flag.name)
    if flag.default is False or flag.default in (None, "", {}):
        return text
    return f"{text} (default {flag.default})"


def _from_file(file: str, flags: Sequence[Flag]) -> dict[str, object]:
    from byzerllm.cli.config_file import load_flags  # YAML is slow to load, and most commands have no file

    names = [flag.name for flag in flags if flag.name != "file" and not flag.positional]
    return load_flags(file, names)


def _check_text(written: str, given: object) -> None:
    """Python keeps the bytes of an argument that are no text as half a character each, which nothing can send."""
    words = given if isinstance(given, list) else [given]
    if any(isinstance(word, str) and _NO_TEXT.search(word) for word in words):
        raise InvalidInput(
            f"{written} has bytes that are no UTF-8 text.",
            hint="Convert the value to UTF-8, for example with iconv.",
            param=written.lstrip("-"),
        )


def _value(flag: Flag, typed: dict[str, object], in_file: dict[str, object]) -> object:
    written = flag.name if flag.positional else f"--{flag.name}"
    values = []
    if flag.name in in_file:
        values.append(flag.kind.parse(f"{flag.name} in {typed['file']}", in_file[flag.name]))
    if flag.name in typed:
        _check_text(written, typed[flag.name])
        values.append(flag.kind.parse(written, typed[flag.name]))
    value = flag.kind.merge(*values) if len(values) == 2 else values[0] if values else flag.default
    if flag.choices and value not in flag.choices:
        raise InvalidInput(f"{written} {value!r} must be one of: {', '.join(flag.choices)}.", param=flag.name)
    if flag.required and value in ("", None):
        raise InvalidInput(
            f"{written} is missing.",
            hint=f"Give {written}, or '{flag.name}: ...' in the --file.",
            param=flag.name,
        )
    return value
