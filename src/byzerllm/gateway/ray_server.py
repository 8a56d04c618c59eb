"""The server as an actor of a Ray cluster: a plain class, of which ``runtime/ray.py`` makes the actor.

Ray starts it again when its process dies; it then takes the port and token that its clients know, and the engines that
still run. The server itself is a thread with a loop of its own: no request comes through the actor.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from byzerllm.errors import ServerUnavailable
from byzerllm.gateway.legacy.names import LegacyNames
from byzerllm.gateway.server import Ground, Server, log_to, recorded
from byzerllm.runtime.on_ray import RayRuntime
from byzerllm.runtime.ray import Actor, Cluster, ClusterMemory, here, own_handle
from byzerllm.runtime.supervisor import HOST, Refused, listen, lock_home
from byzerllm.settings import Settings

log = logging.getLogger(__name__)

_DEATH = 1  # the exit code after which Ray starts the next one


class RayServer:
    """One server for the whole cluster. ``options`` are fields of ``Settings``; None stands for the default.

    Raises:
        ServerUnavailable: its home or port cannot be used. The actor is dead then, and Ray does not start it again.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        cluster = Cluster.current()
        settings, any_port = _settings(options, cluster.address)
        self._memory = ClusterMemory()
        try:
            self._lock = lock_home(settings)
            ground = _ground(settings, cluster, self._memory, any_port=any_port)
        except Refused as refused:
            raise ServerUnavailable(f"On the cluster's head node: {refused}") from None
        settings.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_to(logging.FileHandler(settings.server_log))
        logging.getLogger().setLevel(settings.log_level)
        _take_normal_priority()  # before the server's thread, which has it from this one
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
        self._memory.clear()
        self._actor.kill()  # it was told to stop: Ray must not start another


def _take_normal_priority() -> None:
    """Ray's workers give way to every other process of their node. What all requests wait for must not, if it may."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except PermissionError:
        log.info(
            "other processes go before the server: RAY_worker_niceness=0 in the environment of ray start ends that"
        )


def _settings(options: dict[str, Any], address: str) -> tuple[Settings, bool]:
    """The settings, and whether any port will do."""
    given = {name: value for name, value in options.items() if value is not None}
    home = Path(given.pop("home", Settings.read().on_ray(address).home))
    any_port = "port" not in given
    return replace(Settings(home=home, ray_address=address), **given), any_port


def _ground(settings: Settings, cluster: Cluster, memory: ClusterMemory, *, any_port: bool) -> Ground:
    """The sockets, on the ports of the server before this one where they are free, and what the cluster gives."""
    node = here()
    last = urlsplit(str(recorded(settings).get("url", ""))).port
    local = _listen(HOST, last or settings.port, any_port)
    shared = None if node.host == HOST else _listen(node.host, last or local.getsockname()[1], any_port)
    return Ground(
        runtime=RayRuntime(cluster, str(settings.logs)),
        names=LegacyNames(cluster, settings.home, node.node),
        memory=memory,
        local=local,
        shared=shared,
        ray_address=settings.ray_address,
    )


def _listen(host: str, port: int, any_port: bool) -> socket.socket:
    listener = listen(host, port, any_port=any_port)
    listener.setblocking(False)
    return listener
