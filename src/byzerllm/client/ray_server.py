"""The server of a Ray cluster, as the command line sees it.

Its address and token are looked up through Ray once and kept in ``server.json``. As long as that server answers, no
command imports ray.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from byzerllm.client.admin import answers
from byzerllm.client.locate import is_this_machine, same_cluster
from byzerllm.client.server_file import (
    ServerInfo,
    prepare_folder,
    process_exists,
    recorded_server,
    write_server_file,
)
from byzerllm.errors import ByzerError, Conflict, EngineMissing, ServerUnavailable

if TYPE_CHECKING:
    from byzerllm.runtime.ray import Cluster
    from byzerllm.settings import Settings

START_LIMIT = 30.0
RETURN_LIMIT = 15.0  # for a server that Ray is starting again
REACH_LIMIT = 5.0  # for one that Ray has, and that is just starting or ending
POLL = 0.1

_CLASS = "byzerllm.gateway.ray_server:RayServer"


def running_server(settings: Settings) -> ServerInfo | None:
    """The cluster's server, once it answers; None when it has none.

    Raises:
        ServerUnavailable: it does not answer, or the cluster does not.
    """
    info = _known(settings)
    if info is not None:
        return info
    with _connected(settings.ray_address) as cluster:
        return _look_up(settings, cluster)


def ensure_server(settings: Settings, notify: Callable[[str], None]) -> ServerInfo:
    """The cluster's server, created first when it has none; ``notify`` is told so.

    Raises:
        ServerUnavailable: it did not start, with the reason; or it does not answer.
    """
    info = _known(settings)
    if info is not None:
        return info
    with _connected(settings.ray_address) as cluster:
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline:
            info = _look_up(settings, cluster) or _create(settings, cluster, notify)
            if info is not None:
                return info
            time.sleep(POLL)  # another command was faster, or the last server is not quite gone
    raise _silent(settings, START_LIMIT)


def _known(settings: Settings) -> ServerInfo | None:
    """The server on record, if it is the cluster's and answers. Otherwise it may have moved: Ray knows."""
    info = recorded_server(settings.server_file)
    if info is None or not same_cluster(settings.ray_address, info.ray_address):
        return None
    return info if _answers(info) else None


def _answers(info: ServerInfo) -> bool:
    try:
        return answers(info)
    except ServerUnavailable:
        return False


@contextmanager
def _connected(address: str) -> Iterator[Cluster]:
    try:
        from byzerllm.runtime.ray import Cluster  # takes a second to load
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise EngineMissing(
            f"Ray is not installed here, and is needed to find the server of the Ray cluster at {address}.",
            hint="Run pip install 'byzerllm[ray]', or use this machine alone with --ray_address embedded.",
        ) from None
    cluster = Cluster.connect(address)
    try:
        yield cluster
    finally:
        cluster.disconnect()


def _look_up(settings: Settings, cluster: Cluster) -> ServerInfo | None:
    """The server that Ray has, once it answers; None when there is none, or it has just ended."""
    from byzerllm.runtime.placement import ActorGone
    from byzerllm.runtime.ray import SERVER

    deadline = time.monotonic() + REACH_LIMIT
    while True:
        actor = cluster.find(SERVER)
        if actor is None:
            return None
        try:
            info = _read(actor.ask("describe", timeout=RETURN_LIMIT))
        except ActorGone:
            return None
        except TimeoutError:
            raise _silent(settings, RETURN_LIMIT) from None
        if _answers(info):
            _keep(settings, info)
            return info
        if time.monotonic() > deadline:
            raise _unreachable(settings, info)
        time.sleep(POLL)


def _create(settings: Settings, cluster: Cluster, notify: Callable[[str], None]) -> ServerInfo | None:
    """A new server, once it answers; None when there is one by now. One that fails is removed again."""
    from byzerllm.runtime.placement import ActorGone
    from byzerllm.runtime.ray import SERVER

    notify(f"Starting the server on the Ray cluster at {settings.ray_address} ...")
    head = next(node for node in cluster.nodes() if node.head)
    try:
        actor = cluster.create(_CLASS, SERVER, _options(settings, head.host), node=head.id, restarts=True)
    except Conflict:
        return None
    try:
        info = _read(actor.ask("describe", timeout=START_LIMIT))
    except (ActorGone, ByzerError, TimeoutError) as error:
        actor.kill()
        late = isinstance(error, TimeoutError)
        reason = f"it was not ready after {START_LIMIT:.0f} s" if late else getattr(error, "message", str(error))
        raise ServerUnavailable(
            f"The server could not be started on the Ray cluster at {settings.ray_address}: {reason.rstrip('.')}.",
            hint=getattr(error, "hint", None),
        ) from None
    if not _answers(info):
        raise _unreachable(settings, info)
    _keep(settings, info)
    return info


def _options(settings: Settings, head: str) -> dict[str, Any]:
    """What the server is created with. It reads no environment: it runs in that of ``ray start``."""
    environ = os.environ
    return {
        # The command's own folder is meant where it was named, or where it is the head node's as well.
        "home": str(settings.home) if environ.get("BYZERLLM_HOME") or is_this_machine(head) else None,
        "port": settings.port if environ.get("BYZERLLM_PORT") else None,
        "api_key": settings.api_key,
        "log_level": settings.log_level,
        "max_body": settings.max_body,
        "drain_timeout": settings.drain_timeout,
        "probe_interval": settings.probe_interval,
    }


def _read(description: Any) -> ServerInfo:
    try:
        return msgspec.convert(description, ServerInfo)
    except msgspec.ValidationError as error:
        raise ServerUnavailable(f"The cluster's server is of another version of byzerllm: {error}.") from None


def _keep(settings: Settings, info: ServerInfo) -> None:
    """Record the server under the name that its cluster was called by, unless the file is a server's own."""
    there = recorded_server(settings.server_file)
    if there is not None and _is_its_own(settings, there):
        return
    prepare_folder(settings.home)
    write_server_file(settings.server_file, msgspec.structs.replace(info, ray_address=settings.ray_address))


def _is_its_own(settings: Settings, info: ServerInfo) -> bool:
    """Whether a server that runs on this machine has written the file; it will remove it, too."""
    return info.home == str(settings.home) and is_this_machine(info.address[0]) and process_exists(info.pid)


def _silent(settings: Settings, waited: float) -> ServerUnavailable:
    return ServerUnavailable(
        f"The server of the Ray cluster at {settings.ray_address} has not answered for {waited:.0f} s.",
        hint="Its log is ray/logs/server.log in $BYZERLLM_HOME on the cluster's head node.",
    )


def _unreachable(settings: Settings, info: ServerInfo) -> ServerUnavailable:
    return ServerUnavailable(
        f"The server of the Ray cluster at {settings.ray_address} does not answer at {info.url} from here.",
        hint="If it is not just stopping: open that port to this machine, or run the command on the head node.",
    )
