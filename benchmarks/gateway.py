"""Throughput of the gateway on one core: plain answers and 200-chunk streams a second, against nginx."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence

import uvloop
from benchmarks import contenders, report
from benchmarks.load import Load, closed_loop, percentile
from benchmarks.peers import PEERS

CONNECTIONS = 32
KINDS = {"plain": 9, "stream": 200}  # tokens of an answer
TARGETS = {"plain": 0.30, "stream": 0.80}  # share of nginx's rate
WARM_UP = 0.5


def measure(contender: contenders.Contender, kind: str, seconds: float) -> report.Row:
    """One round of one contender: rate, latency and the CPU that one answer cost."""
    stream = kind == "stream"
    port = contender.stream_port if stream else contender.port
    load = Load(port, stream, KINDS[kind], CONNECTIONS, contenders.KEY)
    uvloop.run(closed_loop(load, seconds=WARM_UP if contender.name not in PEERS else seconds))
    before = contender.cpu
    result = uvloop.run(closed_loop(load, seconds=seconds))
    used = contender.cpu - before
    return {
        "rate": result.rate,
        "p50_ms": percentile(result.latencies, 0.50) * 1e3,
        "p99_ms": percentile(result.latencies, 0.99) * 1e3,
        "cpu_us": used / result.requests * 1e6,
        "cpu_share": used / result.seconds,
        "errors": result.errors,
        "first_error": result.first_error,
    }


def run(rounds: int, seconds: float, peers: bool) -> int:
    """Measure in interleaved rounds; returns the number of answers that were not whole."""
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(contenders.mock("--tokens", str(2 * max(KINDS.values()))))
        fielded = [upstream, stack.enter_context(contenders.nginx(upstream.port))]
        fielded.append(stack.enter_context(contenders.byzerllm(upstream.port)))
        if peers:
            fielded += _start_peers(stack, upstream.port)
        seen: dict[tuple[str, str], list[report.Row]] = {}
        for _ in range(rounds):
            for kind in KINDS:
                for contender in fielded:
                    seen.setdefault((kind, contender.name), []).append(measure(contender, kind, seconds))
    rows = [_summary(kind, name, measured) for (kind, name), measured in seen.items()]
    return _publish(rows)


def _start_peers(stack: contextlib.ExitStack, upstream: int) -> list[contenders.Contender]:
    return [started for name in PEERS if (started := _start_peer(stack, name, upstream))]


def _start_peer(stack: contextlib.ExitStack, name: str, upstream: int) -> contenders.Contender | None:
    try:
        return stack.enter_context(PEERS[name](upstream))
    except RuntimeError as error:
        print(f"without {name}: {error}")
        return None


def _summary(kind: str, name: str, rounds: Sequence[report.Row]) -> report.Row:
    def middle(key: str) -> float:
        return float(statistics.median(row[key] for row in rounds))

    return {
        "gateway": name,
        "kind": kind,
        "per_second": middle("rate"),
        "p50_ms": middle("p50_ms"),
        "p99_ms": middle("p99_ms"),
        "cpu_us": middle("cpu_us"),
        "cpu_share": middle("cpu_share"),
        "errors": sum(row["errors"] for row in rounds),
        "first_error": next((row["first_error"] for row in rounds if row["first_error"]), ""),
    }


def _publish(rows: list[report.Row]) -> int:
    ratios: dict[str, float] = {}
    for kind in KINDS:
        of_kind = [row for row in rows if row["kind"] == kind]
        rates = {row["gateway"]: row["per_second"] for row in of_kind}
        for row in of_kind:
            row["to_nginx"] = row["per_second"] / rates["nginx"]
        report.table(
            f"{kind}: answers of {KINDS[kind]} tokens, {CONNECTIONS} connections", [_shown(r) for r in of_kind]
        )
        ratios[kind] = rates["byzerllm"] / rates["nginx"]
        print(f"byzerllm / nginx: {report.verdict(ratios[kind], TARGETS[kind], at_least=True)}")
        if "litellm" in rates:
            ratios[f"{kind}_to_litellm"] = rates["byzerllm"] / rates["litellm"]
            print(f"byzerllm / litellm: {report.verdict(ratios[f'{kind}_to_litellm'], 50, at_least=True)}")
    report.write("gateway", rows, ratios=ratios, targets=TARGETS)
    titles = {"plain": "plain answers a second", "stream": "200-chunk streams a second"}
    report.bars(
        "gateway",
        {t: {r["gateway"]: r["per_second"] for r in rows if r["kind"] == k} for k, t in titles.items()},
    )
    for row in rows:
        if row["errors"]:
            print(f"{row['gateway']}, {row['kind']}: {row['errors']} errors, the first: {row['first_error']}")
    return sum(int(row["errors"]) for row in rows if row["gateway"] in ("direct", "nginx", "byzerllm"))


def _shown(row: report.Row) -> report.Row:
    return {key: value for key, value in row.items() if key not in ("kind", "first_error")}
