"""Which server a command talks to: a Ray cluster's, or this machine's own. Ray itself is not imported for it."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from byzerllm.errors import InvalidInput, ServerUnavailable

ANSWER_LIMIT = 3.0
_ADDRESS = re.compile(r"(?:ray://)?(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")

# Ray's ports speak gRPC, so HTTP/2: each side begins with a frame of settings, the client with a preface before it.
_FRAME_HEADER = 9
_HTTP2_SETTINGS = b"\x04"
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _HTTP2_SETTINGS + bytes(5)


@dataclass(frozen=True)
class Where:
    """``cluster`` is a Ray cluster's address, "" means this machine; ``reason`` is what a person may wonder about."""

    cluster: str = ""
    reason: str = ""

    def __str__(self) -> str:
        place = f"the Ray cluster at {self.cluster}" if self.cluster else "this machine"
        return f"Using {place}{self.reason}."


def choose(flag: str, environ: Mapping[str, str], recorded: str, obstacle: Callable[[str], str]) -> Where:
    """The runtime that ``--ray_address`` asks for or that, with ``auto``, is found.

    ``recorded`` is the text of Ray's address file, "" when there is none. ``obstacle`` says why an address cannot be
    reached, "" if it can.

    Raises:
        InvalidInput: an address is none.
        ServerUnavailable: a cluster that was asked for by its address does not answer.
    """
    if flag == "embedded":
        return Where()
    if flag not in ("", "auto"):
        return _asked_for("--ray_address", flag, obstacle)
    variable = environ.get("RAY_ADDRESS", "").strip()
    if variable == "local":
        return Where()  # Ray's word for a cluster of one's own, not for one that runs already
    if variable not in ("", "auto"):
        return Where(_asked_for("RAY_ADDRESS", variable, obstacle).cluster, ", which RAY_ADDRESS names")
    address = recorded.strip()
    if not _is_address(address):
        return Where()
    if problem := obstacle(address):
        return Where(reason=f": the Ray cluster at {address} that it belonged to does not answer ({problem})")
    return Where(address, ", which this machine belongs to")


def locate(flag: str, environ: Mapping[str, str]) -> Where:
    """``choose`` for this machine as it is now. Takes some seconds when the cluster hangs, else some milliseconds.

    Raises:
        InvalidInput, ServerUnavailable: as ``choose``.
    """
    tls = environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")  # what Ray takes for yes
    return choose(flag, environ, _recorded(environ), lambda address: _obstacle(address, tls=tls))


def same_cluster(asked: str, known: str) -> bool:
    """Whether two addresses are of one cluster; False where only Ray could tell."""
    if asked == known:
        return True
    if "ray://" in asked + known or not _is_address(known):
        return False
    (host, port), (known_host, known_port) = _host_and_port(asked), _host_and_port(known)
    return port == known_port and is_this_machine(host) and is_this_machine(known_host)


def is_this_machine(host: str) -> bool:
    """Whether a host's address is one of this machine's: no other can be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((host, 0))
    except (OSError, UnicodeError):
        return False
    return True


def _asked_for(name: str, address: str, obstacle: Callable[[str], str]) -> Where:
    if not _is_address(address):
        raise InvalidInput(
            f"{name} {address!r} is no address of a Ray cluster.",
            hint="Give HOST:PORT or ray://HOST:PORT; --ray_address auto finds a cluster, and embedded uses none.",
            param=name.lstrip("-"),
        )
    if problem := obstacle(address):
        raise ServerUnavailable(
            f"No Ray cluster answers at {address}, which {name} names: {problem}.",
            hint="Start it with ray start, or use this machine alone with --ray_address embedded.",
        )
    return Where(address)


def _is_address(text: str) -> bool:
    match = _ADDRESS.fullmatch(text)
    return match is not None and 1 <= int(match["port"]) <= 65535


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return host.strip("[]"), int(port)


def _recorded(environ: Mapping[str, str]) -> str:
    """What ``ray start`` left, in the folder where Ray itself looks for it."""
    folder = environ.get("RAY_TMPDIR") or (environ.get("TMPDIR") if sys.platform == "linux" else "") or "/tmp"
    try:
        return Path(folder, "ray", "ray_current_cluster").read_text("utf-8", "replace")
    except OSError:
        return ""


def _obstacle(address: str, *, tls: bool) -> str:
    """Why the cluster cannot be reached. It is greeted in its protocol, since Ray itself would try for a minute or more
    to talk to a head that hangs or to another program; not so where Ray uses TLS."""
    try:
        with socket.create_connection(_host_and_port(address), timeout=ANSWER_LIMIT) as connection:
            if tls:
                return ""
            connection.sendall(_HTTP2_HELLO)
            frame = connection.recv(_FRAME_HEADER)
            return "" if frame[3:4] == _HTTP2_SETTINGS else "what listens there is not Ray"
    except (OSError, UnicodeError) as error:
        return (getattr(error, "strerror", None) or str(error)).lower()
