"""What a process reads from its environment, once, at its start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from byzerllm.errors import InvalidInput

DEFAULT_PORT = 8765


@dataclass(frozen=True)
class Settings:
    """Limits and places. Sizes are in bytes, times in seconds.

    ``ray_address`` is the cluster whose server is meant, "" for this machine's own; the environment does not set it.
    """

    home: Path
    port: int = DEFAULT_PORT
    api_key: str | None = None
    log_level: str = "INFO"
    max_body: int = 64 * 1024 * 1024
    drain_timeout: float = 30.0
    probe_interval: float = 5.0
    ray_address: str = ""

    def on_ray(self, address: str) -> Settings:
        """The same for the server of a Ray cluster. Its home is a folder of its own: the two servers share nothing."""
        return replace(self, home=self.home / "ray", ray_address=address)

    @property
    def server_file(self) -> Path:
        """Address and admin token of the running server, mode 0600."""
        return self.home / "server.json"

    @property
    def server_log(self) -> Path:
        return self.home / "logs" / "server.log"

    @property
    def database(self) -> Path:
        return self.home / "state.db"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def engines(self) -> Path:
        """The environments of the engines, a folder each; both kinds of server have the same."""
        return (self.home.parent if self.ray_address else self.home) / "engines"

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment.

        Raises:
            InvalidInput: a variable has a value that cannot be used.
        """
        env = os.environ if environ is None else environ
        home = Path(env.get("BYZERLLM_HOME") or Path.home() / ".byzerllm").expanduser().absolute()
        return cls(
            home=home,
            port=int(_number(env, "BYZERLLM_PORT", cls.port, 0, 65535)),
            api_key=env.get("BYZERLLM_API_KEY") or None,
            log_level=_choice(env, "BYZERLLM_LOG_LEVEL", cls.log_level, ("DEBUG", "INFO", "WARNING", "ERROR")),
            max_body=int(_number(env, "BYZERLLM_MAX_BODY_MB", 64, 1, 4096) * 1024 * 1024),
            drain_timeout=_number(env, "BYZERLLM_DRAIN_TIMEOUT", cls.drain_timeout, 0, 86400),
            probe_interval=_number(env, "BYZERLLM_PROBE_INTERVAL", cls.probe_interval, 0.1, 3600),
        )


def _choice(env: Mapping[str, str], name: str, default: str, known: tuple[str, ...]) -> str:
    text = (env.get(name) or default).upper()
    if text not in known:
        raise InvalidInput(f"{name}={env[name]!r} must be one of {', '.join(known)}.", param=name)
    return text


def _number(env: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise InvalidInput(f"{name}={text!r} must be a number from {low:g} to {high:g}.", param=name)
    return value
