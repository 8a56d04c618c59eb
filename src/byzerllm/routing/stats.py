"""What an instance counts of the requests of its users, cheaply enough for the hot path."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable

from byzerllm.wire.base import Usage

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
RECENT = 2048


class Histogram:
    """Counts by bucket for ever, and the recent values for percentiles. Values are in seconds."""

    __slots__ = ("counts", "recent", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0
        self.recent: deque[float] = deque(maxlen=RECENT)

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds
        self.recent.append(seconds)

    def percentiles(self, wanted: Iterable[int] = (50, 90, 99)) -> dict[str, float | None]:
        """``{"p50": seconds, ...}`` of the recent values; None while there are none."""
        ordered = sorted(self.recent)
        if not ordered:
            return {f"p{p}": None for p in wanted}
        last = len(ordered) - 1
        return {f"p{p}": round(ordered[round(last * p / 100)], 6) for p in wanted}

    def mean(self) -> float:
        """Mean of the recent values in seconds, 0 while there are none."""
        return sum(self.recent) / len(self.recent) if self.recent else 0.0


class Stats:
    """One instance's counters. ``outcomes``: ok, cancelled, or what ``failover.outcome_of`` makes of the error."""

    __slots__ = ("completion_tokens", "first_byte", "latency", "outcomes", "prompt_tokens", "queue_wait", "retries")

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.retries = 0
        self.latency = Histogram()
        self.first_byte = Histogram()
        self.queue_wait = Histogram()
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def count_usage(self, usage: Usage | None) -> None:
        if usage is not None:
            self.prompt_tokens += usage.prompt
            self.completion_tokens += usage.completion
