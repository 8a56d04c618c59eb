"""A worker's slots, what an instance counts, what `stat` shows of it, and the table of instances."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.slots import instance, run, upstream, worker

from byzerllm.errors import ModelNotFound
from byzerllm.routing.instance import Instance
from byzerllm.routing.report import detail, stat
from byzerllm.routing.stats import BUCKETS, RECENT, Histogram, Stats
from byzerllm.routing.table import Table, no_such_model
from byzerllm.wire.base import Task, Usage


def test_a_request_is_its_head_and_its_body() -> None:
    assert upstream().request(Task.CHAT, b"{}") == (
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
    )


def test_free_slots() -> None:
    one = worker(0, capacity=3)
    assert (one.free, one.in_rotation) == (3, True)
    one.active = 2
    assert one.free == 1
    one.probing = True
    assert one.free == 0
    one.active = 0
    assert one.free == 1
    one.probing = False
    for name, out, back in (("up", False, True), ("retired", True, False), ("open_until", 1.0, 0.0)):
        setattr(one, name, out)
        assert (one.free, one.in_rotation) == (0, False)
        setattr(one, name, back)
    assert one.free == 3


def test_a_worker_takes_under_a_kilobyte() -> None:
    import sys

    one = worker(70_000, capacity=100)
    own = [getattr(one, name) for name in type(one).__slots__ if name != "upstream"]
    assert sys.getsizeof(one) + sum(sys.getsizeof(value) for value in own) < 1024


def test_a_histogram_counts_by_upper_bound() -> None:
    histogram = Histogram()
    for seconds in (0.0, 0.001, 0.0011, 300.0, 301.0):
        histogram.add(seconds)
    assert histogram.counts[:2] == [2, 1]
    assert histogram.counts[-2:] == [1, 1]
    assert (sum(histogram.counts), len(histogram.counts)) == (5, len(BUCKETS) + 1)
    assert histogram.total == pytest.approx(601.0021)


def test_percentiles_are_of_the_recent_values() -> None:
    histogram = Histogram()
    assert (histogram.percentiles(), histogram.mean()) == ({"p50": None, "p90": None, "p99": None}, 0.0)
    for _ in range(10):
        histogram.add(99.0)
    for number in range(RECENT):
        histogram.add(number / 1000)
    assert histogram.percentiles((0, 50, 100)) == {"p0": 0.0, "p50": 1.024, "p100": 2.047}
    assert histogram.mean() == pytest.approx(1.0235)


def test_tokens_add_up() -> None:
    stats = Stats()
    for usage in (Usage(1, 2), None, Usage(10, 20)):
        stats.count_usage(usage)
    assert (stats.prompt_tokens, stats.completion_tokens) == (11, 22)


def at_work() -> dict[str, Any]:
    """What is shown of four workers: one full, one half busy, one idle, one down."""

    async def main() -> dict[str, Any]:
        made = instance(asyncio.get_running_loop(), 2, 2, 2, 2)
        await asyncio.sleep(100)
        first = made.lease_nowait()
        assert first is not None
        made.lease_nowait()
        made.lease_nowait(avoid=made.workers[0])
        made.set_up(made.workers[3], False)
        await asyncio.sleep(31.7134)
        return stat(made, asyncio.get_running_loop().time())

    return run(main())


def test_stat_has_the_eight_keys_in_their_order_with_their_types() -> None:
    shown = at_work()
    assert list(shown.items()) == [
        ("total_workers", 4),
        ("busy_workers", 4),
        ("idle_workers", 0),
        ("load_balance_strategy", "lru"),
        ("total_requests", [1, 1, 1, 0]),
        ("state", [1, 1, 1, 0]),
        ("worker_max_concurrency", 2),
        ("workers_last_work_time", ["31.713s", "31.713s", "31.713s", "131.713s"]),
    ]


def with_instance(look: Any) -> Any:
    async def main() -> Any:
        made = instance(asyncio.get_running_loop(), 1, 3)
        return look(made)

    return run(main())


def test_stat_of_an_instance_at_rest_and_of_one_without_workers() -> None:
    def look(made: Instance) -> None:
        assert stat(made, 0.0)["busy_workers"] == 0
        assert stat(made, -1.0)["workers_last_work_time"] == ["0.000s", "0.000s"]
        made.workers.clear()
        assert list(stat(made, 0.0).values()) == [0, 0, 0, "lru", [], [], 0, []]

    with_instance(look)


def test_detail_sorts_what_was_answered_from_what_was_not() -> None:
    def look(made: Instance) -> None:
        made.stats.outcomes.update({"ok": 7, "cancelled": 2, "overloaded": 1, "not_found": 3})
        made.stats.retries = 4
        made.stats.count_usage(Usage(5, 6))
        made.stats.latency.add(0.5)
        made.lease_nowait()
        shown = detail(made)
        assert list(shown) == [
            "worker_state", "queue", "latency_s", "first_byte_s", "tokens", "requests", "errors",
        ]  # fmt: skip
        assert shown["worker_state"] == [{"active_task": 1, "ready": True}, {"active_task": 0, "ready": True}]
        assert shown["queue"] == {
            "waiting": 0, "max_queue": 10, "timeout_s": 5.0, "wait_s": {"p50": None, "p90": None, "p99": None},
        }  # fmt: skip
        assert shown["latency_s"]["p50"] == 0.5
        assert shown["tokens"] == {"prompt": 5, "completion": 6}
        assert shown["requests"] == {"ok": 7, "cancelled": 2, "retries": 4}
        assert shown["errors"] == {"not_found": 3, "overloaded": 1}

    with_instance(look)


def test_the_table() -> None:
    def look(made: Instance) -> None:
        table = Table()
        with pytest.raises(ModelNotFound, match="Nothing is deployed"):
            table.get("m")
        table.put(made)
        assert (table.get("m"), table.names(), table.all()) == (made, ["m"], [made])
        with pytest.raises(ModelNotFound, match=r"named 'x'\. Deployed: m\.") as refused:
            table.get("x")
        assert refused.value.details == {"names": ["m"]}
        table.remove("m")
        table.remove("m")
        assert table.all() == []

    with_instance(look)


def test_very_many_names_are_shortened() -> None:
    error = no_such_model("x", [f"m{number:04}" for number in range(2000)])
    assert str(error.hint).endswith("m0049 and 1950 more.")
    assert len(error.details["names"]) == 1000
