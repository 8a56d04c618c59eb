"""``server.json``: where the running server is and the token that opens it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec

from byzerllm.errors import InvalidInput, ServerUnavailable


class ServerInfo(msgspec.Struct, frozen=True):
    """What a server writes about itself when it is ready. ``started_at`` is in seconds since 1970.

    ``ray_address`` is the cluster that it runs on, "" when that is no Ray cluster.
    """

    url: Annotated[str, msgspec.Meta(pattern=r"^http://[0-9.]+:[0-9]{1,5}$")]
    token: str
    pid: int
    supervisor_pid: int
    runtime: str
    version: str
    home: str
    started_at: float
    ray_address: str = ""

    def __repr__(self) -> str:
        return f"ServerInfo(url={self.url!r}, pid={self.pid})"  # the token stays out of logs

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)


def read_server_file(path: Path) -> ServerInfo | None:
    """What the file says, or None when there is none. Whether that server still runs is for a request to tell.

    Raises:
        ServerUnavailable: the file cannot be read or is not what a server writes.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=ServerInfo)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServerUnavailable(f"Cannot read {path}: {error.strerror}.") from None
    except msgspec.DecodeError as error:
        raise ServerUnavailable(
            f"{path} is damaged: {error}.", hint="Run byzerllm server start, which writes it anew."
        ) from None


def recorded_server(path: Path) -> ServerInfo | None:
    """As ``read_server_file``, for who can do without: a damaged file is as good as none and will be replaced."""
    try:
        return read_server_file(path)
    except ServerUnavailable:
        return None


def write_server_file(path: Path, info: ServerInfo) -> None:
    """Keep what was learnt about a server, readable by its owner only; readers see the old file or the new one."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(info)))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def prepare_folder(folder: Path) -> None:
    """Make sure that files can be written there.

    Raises:
        InvalidInput: they cannot.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        reason = "permission denied"
    except OSError as error:
        writable, reason = False, (error.strerror or str(error)).lower()
    if not writable:
        raise InvalidInput(
            f"The folder {folder} cannot be written: {reason}.",
            hint="Set BYZERLLM_HOME to a folder that you can write.",
            param="BYZERLLM_HOME",
        )


def process_exists(pid: int) -> bool:
    """Whether a process of that number runs, whoever owns it. One that has ended and awaits its parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:  # no Linux, or it has ended this moment
        return not Path("/proc/self/stat").exists()
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")
