"""Prometheus metrics, made from the routing counters when they are asked for: the hot path pays nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from byzerllm.routing.instance import Instance
from byzerllm.routing.stats import BUCKETS, Histogram
from byzerllm.routing.table import Table

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class _Instances(Collector):
    def __init__(self, table: Table) -> None:
        self._table = table

    def collect(self) -> Iterator[Metric]:
        instances = self._table.all()
        yield _counter(
            "requests", "Users' requests by outcome", instances, lambda i: dict(i.stats.outcomes), label="outcome"
        )
        yield _counter("retries", "Attempts that were made again", instances, lambda i: {"": i.stats.retries})
        yield _counter(
            "tokens",
            "Tokens as the upstreams counted them",
            instances,
            lambda i: {"prompt": i.stats.prompt_tokens, "completion": i.stats.completion_tokens},
            label="kind",
        )
        yield _gauge("queue_waiting", "Requests that wait for a slot", instances, lambda i: i.queued)
        yield _gauge("active_requests", "Requests that run", instances, lambda i: i.active)
        yield _gauge("slots", "Slots in all", instances, lambda i: sum(w.capacity for w in i.workers))
        yield _gauge("slots_free", "Free slots", instances, lambda i: sum(w.free for w in i.workers))
        yield _gauge("workers", "Workers", instances, lambda i: len(i.workers))
        yield _gauge("workers_in_rotation", "Workers that take requests", instances, lambda i: _count_in_rotation(i))
        yield _histogram("request_seconds", "Time of a whole request", instances, lambda i: i.stats.latency)
        yield _histogram(
            "time_to_first_token_seconds", "Time until a stream's first byte", instances, lambda i: i.stats.first_byte
        )
        yield _histogram("queue_seconds", "Time until a slot was free", instances, lambda i: i.stats.queue_wait)


def _count_in_rotation(instance: Instance) -> int:
    return sum(1 for w in instance.workers if w.in_rotation)


def _counter(
    name: str,
    text: str,
    instances: list[Instance],
    values: Callable[[Instance], dict[str, int]],
    *,
    label: str = "",
) -> Metric:
    family = CounterMetricFamily(f"byzerllm_{name}", text, labels=["model", label] if label else ["model"])
    for instance in instances:
        for key, value in values(instance).items():
            family.add_metric([instance.name, key] if label else [instance.name], value)
    return family


def _gauge(name: str, text: str, instances: list[Instance], value: Callable[[Instance], int]) -> Metric:
    family = GaugeMetricFamily(f"byzerllm_{name}", text, labels=["model"])
    for instance in instances:
        family.add_metric([instance.name], value(instance))
    return family


def _histogram(name: str, text: str, instances: list[Instance], value: Callable[[Instance], Histogram]) -> Metric:
    family = HistogramMetricFamily(f"byzerllm_{name}", text, labels=["model"])
    for instance in instances:
        histogram = value(instance)
        buckets: list[tuple[str, float]] = []
        cumulative = 0
        for bound, count in zip((*BUCKETS, float("inf")), histogram.counts, strict=True):
            cumulative += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), cumulative))
        family.add_metric([instance.name], buckets, histogram.total)
    return family


class Metrics:
    """``render()`` gives the text of ``/metrics``."""

    def __init__(self, table: Table) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Instances(table))

    def render(self) -> bytes:
        return generate_latest(self._registry)
