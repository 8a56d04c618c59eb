"""An instance whose upstream misbehaves, or whose clients do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes import FakeUpstream, json_reply
from tests.gateway import ANSWER, deploy, undeploy
from tests.harness import Byzer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def place(server: Byzer, upstream: FakeUpstream) -> Iterator[Callable[..., str]]:
    """Deploys ``m`` on ``upstream`` for this test alone; returns its name."""
    upstream.default = json_reply(ANSWER)

    def deploy_it(spec: dict[str, Any] | None = None, url: str = "", **params: object) -> str:
        deploy(server, "m", url or upstream, spec, **params)
        return "m"

    yield deploy_it
    undeploy(server, "m")
