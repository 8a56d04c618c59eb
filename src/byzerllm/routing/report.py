"""What ``byzerllm stat`` shows of an instance, pure."""

from __future__ import annotations

from typing import Any

from byzerllm.routing.instance import Instance


def stat(instance: Instance, now: float) -> dict[str, Any]:
    """The eight keys that users know, in their order. ``state`` has each worker's free slots."""
    workers = instance.workers
    busy = sum(1 for w in workers if w.free < w.capacity)
    return {
        "total_workers": len(workers),
        "busy_workers": busy,
        "idle_workers": len(workers) - busy,
        "load_balance_strategy": instance.load_balance,
        "total_requests": [w.requests for w in workers],
        "state": [w.free for w in workers],
        "worker_max_concurrency": workers[0].capacity if workers else 0,
        "workers_last_work_time": [f"{max(0.0, now - w.assigned_at):.3f}s" for w in workers],
    }


def detail(instance: Instance) -> dict[str, Any]:
    """What ``--detail`` adds: queue, latency in seconds, tokens as the upstreams counted them, outcomes."""
    stats = instance.stats
    return {
        "worker_state": [{"active_task": w.active, "ready": w.in_rotation} for w in instance.workers],
        "queue": {
            "waiting": instance.queued,
            "max_queue": instance.max_queue,
            "timeout_s": instance.queue_timeout,
            "wait_s": stats.queue_wait.percentiles(),
        },
        "latency_s": stats.latency.percentiles(),
        "first_byte_s": stats.first_byte.percentiles(),
        "tokens": {"prompt": stats.prompt_tokens, "completion": stats.completion_tokens},
        "requests": {"ok": stats.outcomes["ok"], "cancelled": stats.outcomes["cancelled"], "retries": stats.retries},
        "errors": {k: v for k, v in sorted(stats.outcomes.items()) if k not in ("ok", "cancelled")},
    }
