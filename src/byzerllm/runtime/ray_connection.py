"""Joining a Ray cluster from a program that knows nothing of it but an address, and why that may not work.

Ray by itself tries for a quarter of an hour, prints what only its authors understand and takes over signals and the
standard output. So the cluster's head is asked first who it is, in private calls that are the same from 2.47 to 2.60.
"""

from __future__ import annotations

import importlib
import logging
import os
import platform
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions

from byzerllm.errors import ServerUnavailable

# Seconds for a try; Ray reads them when it first needs them.
_PATIENCE = {"RAY_py_gcs_connect_timeout_s": "2", "RAY_gcs_rpc_server_connect_timeout_s": "1"}
_FAILURES = (RuntimeError, ValueError, OSError, ImportError, ray.exceptions.RayError)
_TOKEN_HINT = "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token."


def join(address: str, namespace: str) -> str:
    """Connect this process to the cluster at HOST:PORT or ray://HOST:PORT; returns the address.

    Raises:
        ServerUnavailable: it does not answer, is of another version of Ray or Python, or refuses the token.
    """
    logging.getLogger("ray").addHandler(logging.NullHandler())  # else warnings reach the terminal
    try:
        with _own_signals(), _silent_stderr():
            if not address.startswith("ray://"):
                _check_token()
                _check_versions(address)
            _mute_ray()
            with _elsewhere():
                ray.init(address, namespace=namespace, log_to_driver=False, configure_logging=False)
    except _FAILURES as error:
        raise _refusal(address, " ".join(str(error).split()) or type(error).__name__) from None
    return address


def _check_token() -> None:
    """Asking without a token where Ray is set to use one would end the process, in C++."""
    try:
        setup: Any = importlib.import_module("ray._private.authentication.authentication_token_setup")
    except ImportError:  # Ray before 2.52 knows no tokens
        return
    setup.ensure_token_if_auth_enabled(create_token_if_missing=False)


def _check_versions(address: str) -> None:
    """Compare Ray and Python with the cluster's; the third number of Python's version does not matter.

    Raises:
        ServerUnavailable: names both.
    """
    cluster = _metadata(address)
    theirs = cluster["ray_version"], cluster["python_version"]
    ours = ray.__version__, platform.python_version()
    if theirs[0] != ours[0] or _minor(theirs[1]) != _minor(ours[1]):
        raise ServerUnavailable(
            f"The Ray cluster at {address} runs Ray {theirs[0]} on Python {theirs[1]}, but this command has Ray "
            f"{ours[0]} on Python {ours[1]}.",
            hint=f"Run it with the cluster's: pip install 'ray=={theirs[0]}' in an environment of Python "
            f"{_minor(theirs[1])}, or use --ray_address embedded.",
        )
    os.environ.setdefault("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")


def _metadata(address: str) -> dict[str, str]:
    """What the cluster says of itself: ``ray_version``, ``python_version``."""
    raylet: Any = importlib.import_module("ray._raylet")
    try:
        usage: Any = importlib.import_module("ray._common.usage.usage_lib")
    except ImportError:  # before 2.48
        usage = importlib.import_module("ray._private.usage.usage_lib")
    before = {name: os.environ.get(name) for name in _PATIENCE}
    os.environ.update({name: value for name, value in _PATIENCE.items() if before[name] is None})
    try:
        found: dict[str, str] = usage.get_cluster_metadata(raylet.GcsClient(address=address))
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
    return found


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _refusal(address: str, text: str) -> ServerUnavailable:
    if "token" in text.lower():
        return ServerUnavailable(_about_token(address, text), hint=_TOKEN_HINT)
    if "ray[client]" in text:
        return ServerUnavailable(
            f"{address} needs Ray's own client, which is not installed.",
            hint=f"Run: pip install 'ray[client]=={ray.__version__}'; or give the cluster's own address, HOST:PORT.",
        )
    return ServerUnavailable(
        f"The Ray cluster at {address} does not let this command in: {text}",
        hint="`ray status` tells whether it runs; --ray_address embedded does without it.",
    )


def _about_token(address: str, text: str) -> str:
    """Ray says the same paragraph of all three."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return f"The Ray cluster at {address} wants a token, and this command sends none."
    if "no authentication token was found" in text:
        return f"No token is set here to send to the Ray cluster at {address}, but RAY_AUTH_MODE asks for one."
    return f"The Ray cluster at {address} does not know the token that is set here."


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Ray has its actors import first of all from where this runs, whatever lies there."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir("/")
        yield
    finally:
        os.fchdir(here)
        os.close(here)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's C++ writes its warnings past Python; the error that follows says it better."""
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as sink:
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _mute_ray() -> None:
    """Ray prints the cluster's news to the standard output of every program that is connected."""
    worker: Any = importlib.import_module("ray._private.worker")
    worker.print_to_stdstream = lambda *args, **kwargs: None
