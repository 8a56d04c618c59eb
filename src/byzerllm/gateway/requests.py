"""The bodies that the admin API takes."""

from __future__ import annotations

import msgspec

from byzerllm.spec import DeploymentSpec


class DeployRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /admin/deployments. ``environment``: values of the variables that ``env:NAME`` parameters name."""

    spec: DeploymentSpec
    replace: bool = False
    verify: bool = True
    wait: bool = True
    environment: dict[str, str] = {}


class ScaleRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /admin/deployments/{name}/scale."""

    num_workers: int


class Cors(msgspec.Struct, frozen=True):
    """What other sites' pages may do; only where a key is needed."""

    allow_credentials: bool = False
    allowed_origins: tuple[str, ...] = ("*",)
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)


class ListenerRequest(Cors, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /admin/listeners, as the flags of ``byzerllm serve`` say it."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = ""
    ssl_keyfile: str = ""
    ssl_certfile: str = ""
    served_model_name: str = ""
