"""How the instances of a restored server turn out, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress

from byzerllm.control.deployment import Deployment, unheard
from byzerllm.control.saas import SaasDeployment
from byzerllm.control.state import State
from byzerllm.errors import ByzerError

_LOOK_SECONDS = 0.05


async def settled(
    deployments: Mapping[str, Deployment], notify: Callable[[str, str], None]
) -> AsyncIterator[tuple[str, str | None]]:
    """Each instance once it is ready, or with the reason once it failed; tries the failed SaaS ones again first."""
    waiting = sorted(deployments)
    for name in waiting:
        deployment = deployments[name]
        if isinstance(deployment, SaasDeployment) and deployment.state()[0] is State.FAILED:
            with suppress(ByzerError):
                await deployment.start(unheard)
    while waiting:
        for name in list(waiting):
            known = deployments.get(name)
            state, reason = known.state() if known else (State.FAILED, "it was removed")
            if state is State.READY:
                yield name, None
            elif reason:
                yield name, reason
            else:
                continue
            waiting.remove(name)
        for name in waiting:
            notify(name, "starting")
        await asyncio.sleep(_LOOK_SECONDS if waiting else 0)
