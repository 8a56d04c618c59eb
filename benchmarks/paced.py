"""Paced streams: the CPU for each relayed chunk, and how much later it comes than without a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import time

import uvloop
from benchmarks import contenders, report
from benchmarks.load import Load, percentile
from benchmarks.streams import Streams

GAP = 0.02  # seconds between the chunks of a stream
TOKENS = 20_000  # more than a measurement lasts: the streams are endless
SETTLE = 1.0
TARGET = 2.2  # times nginx's CPU for a chunk


async def _measure(
    contender: contenders.Contender, upstream: contenders.Contender, streams: int, seconds: float
) -> report.Row:
    load = Load(contender.stream_port, True, TOKENS, streams, contenders.KEY)
    watched = Streams(load)
    try:
        await watched.start()
        await asyncio.sleep(SETTLE)
        watched.reset()
        before, load_before, began = contender.cpu, upstream.cpu + time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        used, took = contender.cpu - before, time.perf_counter() - began
        load_core = (upstream.cpu + time.process_time() - load_before) / took
        delays = watched.delays[:]
    finally:
        watched.stop()
    await asyncio.sleep(0.2)
    return {
        "gateway": contender.name,
        "streams": streams,
        "chunks_per_s": len(delays) / took,
        "delivered": len(delays) * GAP / (took * streams),
        "cpu_us": used / len(delays) * 1e6 if delays else 0.0,
        "cpu_share": used / took,
        "load_share": load_core,
        "p50_us": percentile(delays, 0.50) / 1e3,
        "p99_us": percentile(delays, 0.99) / 1e3,
        "errors": watched.errors,
        "first_error": watched.first_error,
    }


def run(seconds: float, counts: tuple[int, ...] = (200, 500)) -> int:
    """Measure each count of streams; returns the number of errors."""
    rows: list[report.Row] = []
    with contextlib.ExitStack() as stack:
        flags = ("--tokens", str(TOKENS), "--itl", str(GAP), "--stamp", "true")
        upstream = stack.enter_context(contenders.mock(*flags))
        fielded = [upstream, stack.enter_context(contenders.nginx(upstream.port))]
        fielded.append(stack.enter_context(contenders.byzerllm(upstream.port, concurrency=16)))
        for streams in counts:
            found = [uvloop.run(_measure(contender, upstream, streams, seconds)) for contender in fielded]
            for row in found:
                row["added_p50_us"] = row["p50_us"] - found[0]["p50_us"]
                row["added_p99_us"] = row["p99_us"] - found[0]["p99_us"]
            rows += found
    return _publish(rows, counts)


def _publish(rows: list[report.Row], counts: tuple[int, ...]) -> int:
    shown = [{key: value for key, value in row.items() if key != "first_error"} for row in rows]
    report.table(f"paced streams, {GAP * 1e3:g} ms between chunks (the mock's own CPU in the row direct)", shown)
    ratios, panels = {}, {}
    for streams in counts:
        cost = {row["gateway"]: row["cpu_us"] for row in rows if row["streams"] == streams}
        ratios[str(streams)] = cost["byzerllm"] / cost["nginx"]
        print(
            f"{streams} streams, CPU byzerllm / nginx: {report.verdict(ratios[str(streams)], TARGET, at_least=False)}"
        )
        panels[f"{streams} streams: CPU us per chunk"] = {n: c for n, c in cost.items() if n != "direct"}
        panels[f"{streams} streams: p99 delay, us"] = {
            row["gateway"]: row["p99_us"] for row in rows if row["streams"] == streams
        }
    report.write("paced", rows, ratios=ratios, targets={"cpu": TARGET})
    report.bars("paced", panels)
    for row in rows:
        if row["errors"]:
            print(
                f"{row['gateway']}, {row['streams']} streams: {row['errors']} errors, the first: {row['first_error']}"
            )
    if any(row["delivered"] < 0.98 for row in rows):
        print("not every chunk came in time: a core was busy with something else, so the delays mean little")
    return sum(int(row["errors"]) for row in rows)
