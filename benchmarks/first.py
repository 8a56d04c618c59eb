"""What a gateway adds to the first token: bursts of requests to an upstream that always takes the same time for it.

Between two bursts everything rests for longer than it takes to answer, as in a server that waits for its engine: caches
are cold then, and a request costs more than in a throng of them. Real engines add luck of their own (``engines.py``).
"""

from __future__ import annotations

import contextlib
import statistics
import time

from benchmarks import contenders, report
from benchmarks.generation import Answers, Callers, Endpoint
from benchmarks.load import MODEL

COUNTS = (1, 4, 8)
LATENCY = 0.02  # seconds
REST = 0.02
BURSTS = 60  # a round
TARGET_MS = 2.0


def run(rounds: int) -> int:
    """Measure each count of requests at a time; returns the number of answers that were not whole."""
    rows: list[report.Row] = []
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(contenders.mock("--latency", str(LATENCY), "--tokens", "9"))
        fielded = [upstream, stack.enter_context(contenders.nginx(upstream.port))]
        fielded.append(stack.enter_context(contenders.byzerllm(upstream.port, workers=1, concurrency=max(COUNTS))))
        for count in COUNTS:
            seen: dict[str, list[Answers]] = {contender.name: [] for contender in fielded}
            with contextlib.ExitStack() as open_ones:
                turns = [open_ones.enter_context(Callers(_endpoint(contender), count)) for contender in fielded]
                for callers in rounds * BURSTS * turns:
                    seen[callers.endpoint.name].append(callers.burst(1))
                    time.sleep(REST)
            rows += [_row(name, count, bursts, seen[upstream.name]) for name, bursts in seen.items()]
    report.table(f"first tokens, {LATENCY * 1e3:.0f} ms upstream", rows)
    for row in rows:
        if row["who"] == "byzerllm":
            verdict = report.verdict(row["added_ms"], TARGET_MS, at_least=False)
            print(f"{row['requests']} at a time: added ms to the first token {verdict}")
    report.write("first", rows, target_ms=TARGET_MS)
    return sum(int(row["errors"]) for row in rows)


def _endpoint(contender: contenders.Contender) -> Endpoint:
    return Endpoint(contender.name, contender.stream_port, MODEL, contenders.KEY)


def _row(who: str, count: int, bursts: list[Answers], direct: list[Answers]) -> report.Row:
    """Of each burst the mean of its requests; the middle of all bursts, and of the differences to those beside them."""
    pairs = [(_first(a), _first(b)) for a, b in zip(bursts, direct, strict=True) if a.first and b.first]
    if not pairs:
        raise RuntimeError(f"{who}: no whole answer; the first error: {bursts[0].first_error}")
    low, middle, high = statistics.quantiles([a - b for a, b in pairs], n=4, method="inclusive")
    return {
        "who": who,
        "requests": count,
        "first_ms": statistics.median(a for a, _ in pairs),
        "added_ms": middle,
        "half_of_them": f"{low:.2f} to {high:.2f}",
        "errors": sum(answers.errors for answers in bursts),
    }


def _first(answers: Answers) -> float:
    """In milliseconds."""
    return statistics.fmean(answers.first) * 1e3
