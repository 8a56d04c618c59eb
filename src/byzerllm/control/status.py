"""An instance in one row, as ``byzerllm list`` and the admin API show it."""

from __future__ import annotations

from typing import Any

import msgspec

from byzerllm.control.deployment import Deployment
from byzerllm.control.prepare import masked_params


def status(deployment: Deployment) -> dict[str, Any]:
    """Names, states and counts; secrets are masked."""
    spec, instance = deployment.spec, deployment.instance
    state, reason = deployment.state()
    return {
        "name": spec.name,
        "pretrained_model_type": spec.pretrained_model_type,
        "infer_backend": spec.infer_backend,
        "task": instance.task.value,
        "model": spec.model_path or (instance.workers[0].upstream.model if instance.workers else ""),
        "state": state.value,
        "reason": reason,
        "num_workers": spec.num_workers,
        "ready_workers": sum(1 for w in instance.workers if w.in_rotation),
        "slots_free": sum(w.free for w in instance.workers),
        "slots_total": sum(w.capacity for w in instance.workers),
        "queued": instance.queued,
        "total_requests": sum(w.requests for w in instance.workers),
        "load_balance": spec.load_balance,
        "created_at": deployment.created_at,
        "spec": {**msgspec.to_builtins(spec), "infer_params": masked_params(spec)},
    }
