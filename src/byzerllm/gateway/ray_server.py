"""The server as an actor of a Ray cluster: a plain class, of which ``runtime/ray.py`` makes the actor.

Ray starts it again when its process dies; it then takes the port and token that its clients know, and the engines that
still run. The server itself is a thread with a loop of its own: no request comes through the actor.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from byzerllm.errors import ServerUnavailable
from byzerllm.gateway.legacy.names import LegacyNames
from byzerllm.gateway.server import Ground, Server, log_to, recorded
from byzerllm.runtime import processes
from byzerllm.runtime.on_ray import RayRuntime
from byzerllm.runtime.ray import Actor, Cluster, ClusterMemory, here, is_restarted, own_handle
from byzerllm.runtime.supervisor import HOST, Refused, listen, lock_home
from byzerllm.settings import Settings

log = logging.getLogger(__name__)

_DEATH = 1  # the exit code after which Ray starts the next one
RETRY_SECONDS = 2.0


class RayServer:
    """One server for the whole cluster. ``options`` are fields of ``Settings``; None stands for the default.

    Raises:
        ServerUnavailable: its home or port cannot be used. The actor is dead then, and Ray does not start it again; so
            one that Ray has started again ends its process instead, and is tried once more.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        os.umask(0o077)
        try:
            self._start(options)
        except Exception:
            if not is_restarted():
                raise
            log.exception("the server could not be started again; next try in %g s", RETRY_SECONDS)
            time.sleep(RETRY_SECONDS)
            os._exit(_DEATH)

    def _start(self, options: dict[str, Any]) -> None:
        cluster = Cluster.current()
        settings, any_port = _settings(options, cluster.address)
        self._memory = ClusterMemory(str(settings.home))
        self._runtime = RayRuntime(cluster, str(settings.logs))
        try:
            self._lock = lock_home(settings)
            local, shared = _sockets(settings, any_port=any_port)
        except Refused as refused:
            raise ServerUnavailable(f"On the cluster's head node: {refused}") from None
        ground = Ground(
            runtime=self._runtime,
            names=LegacyNames(cluster, settings.home, here().node),
            memory=self._memory,
            local=local,
            shared=shared,
            ray_address=settings.ray_address,
        )
        settings.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_to(logging.FileHandler(settings.server_log))
        logging.getLogger().setLevel(settings.log_level)
        processes.take_normal_priority()  # before the server's thread, which has it from this one
        self._actor = Actor(own_handle())
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._description: dict[str, Any] = {}
        threading.Thread(target=self._serve, args=(settings, ground), name="server", daemon=True).start()
        self._ready.wait()
        if self._failure is not None:
            raise ServerUnavailable(str(self._failure))

    def describe(self) -> dict[str, Any]:
        """What ``server.json`` says: address, token, version."""
        return self._description

    def _serve(self, settings: Settings, ground: Ground) -> None:
        async def run() -> None:
            server = Server(settings, ground)
            self._description = server.describe()
            await server.run(self._ready.set)

        try:
            uvloop.run(run())
        except BaseException as error:
            log.exception("the server failed")
            if not self._ready.is_set():
                self._failure = error
                self._ready.set()
                return
            os._exit(_DEATH)
        self._runtime.close()
        self._memory.clear()
        self._actor.kill()  # it was told to stop: Ray must not start another


def _settings(options: dict[str, Any], address: str) -> tuple[Settings, bool]:
    """The settings, and whether any port will do."""
    given = {name: value for name, value in options.items() if value is not None}
    home = Path(given.pop("home", Settings.read().on_ray(address).home))
    any_port = "port" not in given
    return replace(Settings(home=home, ray_address=address), **given), any_port


def _sockets(settings: Settings, *, any_port: bool) -> tuple[socket.socket, socket.socket | None]:
    """On this machine's own address and on the node's, with the ports of the server before this one where it can be."""
    node = here().host
    last = urlsplit(str(recorded(settings).get("url", ""))).port
    local = _listen(HOST, last or settings.port, any_port)
    return local, None if node == HOST else _listen(node, last or local.getsockname()[1], any_port)


def _listen(host: str, port: int, any_port: bool) -> socket.socket:
    listener = listen(host, port, any_port=any_port)
    listener.setblocking(False)
    return listener
