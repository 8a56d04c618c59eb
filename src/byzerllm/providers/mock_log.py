"""Where the built-in upstream writes conversations, for ``saas/filelogger``."""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec

from byzerllm.errors import InvalidInput


class ConversationLog:
    """Appends conversations to files below ``folder``, or wherever an absolute path points.

    Only a caller whose path begins with ``secret`` may name a file: everybody on this machine can reach the listener,
    and must not write with the server's rights.
    """

    def __init__(self, folder: Path) -> None:
        self.secret = secrets.token_urlsafe(16)
        self._folder = folder

    def admits(self, path: bytes) -> bool:
        return path.startswith(f"/{self.secret}/".encode())

    def append(self, file: str, request: bytes) -> None:
        """Add the request's messages as one line of JSON.

        Raises:
            InvalidInput: the request has none, or the file cannot be written.
        """
        path = self._folder / Path(file).expanduser()
        try:
            messages = msgspec.json.decode(request)["messages"]
            with path.open("ab") as log:
                log.write(msgspec.json.encode(messages) + b"\n")
        except (msgspec.DecodeError, KeyError, TypeError):
            raise InvalidInput("The request has no messages to log.") from None
        except OSError as error:
            raise InvalidInput(f"saas.log_file={file}: {error.strerror}.", param="saas.log_file") from None
