"""Whether the server grows with the requests it has answered."""

from __future__ import annotations

import asyncio

import uvloop
from benchmarks import contenders, report
from benchmarks.load import Load, Result, closed_loop

STEPS = (20_000, 60_000, 100_000, 200_000)  # requests so far, when memory is read
STREAMED = 0.1  # this share of the requests are streams
LIMIT = 1.05  # times the memory after the first step
CONNECTIONS = 32


async def _answer(port: int, requests: int) -> tuple[Result, Result]:
    streamed = int(requests * STREAMED)
    plain = await closed_loop(Load(port, False, 9, CONNECTIONS, contenders.KEY), requests=requests - streamed)
    stream = await closed_loop(Load(port, True, 20, CONNECTIONS, contenders.KEY), requests=streamed)
    await asyncio.sleep(1)
    return plain, stream


def run() -> int:
    """Returns the number of answers that were not whole, and one more if memory grew beyond the limit."""
    rows: list[report.Row] = []
    errors, done = 0, 0
    with contenders.mock("--tokens", "64") as upstream, contenders.byzerllm(upstream.port) as server:
        started = server.rss
        for step in STEPS:
            results = uvloop.run(_answer(server.port, step - done))
            done = step
            errors += sum(result.errors for result in results)
            rows.append({"requests": step, "rss_mb": server.rss / 2**20})
    growth = rows[-1]["rss_mb"] / rows[0]["rss_mb"]
    report.table(f"server memory ({started / 2**20:.1f} MB at the start, one request in ten is a stream)", rows)
    print(f"after {STEPS[-1]:,} / after {STEPS[0]:,}: {report.verdict(growth, LIMIT, at_least=False)}; {errors} errors")
    report.write("memory", rows, growth=growth, errors=errors, start_mb=started / 2**20)
    report.bars("memory", {"MB after so many requests": {f"{r['requests']:,}": r["rss_mb"] for r in rows}})
    return errors + int(growth > LIMIT)
