"""What commands cost: deploying 1,000 SaaS workers with and without a running server, ``stat``, ``--help``."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import contenders, report

WORKERS = 1000
AIMS = {"cold_deploy": 1.0, "stat": 0.25, "help": 0.15}  # seconds, on an idle machine
BYTES_PER_WORKER = 1024
SETTLE = 1.0


def run(rounds: int) -> int:
    """Measure in fresh homes, the median of ``rounds``; 1 when a worker takes more memory than it may."""
    with contenders.mock() as upstream:
        measured = [_round(upstream.port) for _ in range(rounds)]
    middle = {key: statistics.median(row[key] for row in measured) for key in measured[0]}
    rows: list[report.Row] = [
        {"command": name, "seconds": middle[name], "worst": max(r[name] for r in measured), "aim": AIMS.get(name)}
        for name in ("cold_deploy", "warm_deploy", "stat", "help")
    ]
    report.table(f"commands ({WORKERS:,} SaaS workers, median of {rounds})", rows)
    each = middle["bytes_per_worker"]
    print(
        f"bytes per worker: {report.verdict(each, BYTES_PER_WORKER, at_least=False)}; server {middle['rss_mb']:.1f} MB"
    )
    report.write("deploy", rows, rounds=measured, bytes_per_worker=each, rss_mb=middle["rss_mb"])
    report.bars("deploy", {"seconds": {row["command"]: row["seconds"] for row in rows}})
    return int(each > BYTES_PER_WORKER)


def _round(upstream: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="bench-deploy-") as folder:
        home = Path(folder)
        row = {"help": contenders.run_byzerllm(home, "--help")}
        began = time.perf_counter()
        contenders.deploy(home, "cold", upstream, WORKERS)
        row["cold_deploy"] = time.perf_counter() - began
        try:
            # The second instance of one worker pays for whatever is imported late; the third is pure.
            contenders.deploy(home, "small", upstream, 1)
            time.sleep(SETTLE)
            before = contenders.server_of(home).rss
            began = time.perf_counter()
            contenders.deploy(home, "warm", upstream, WORKERS)
            row["warm_deploy"] = time.perf_counter() - began
            time.sleep(SETTLE)
            after = contenders.server_of(home).rss
            row["stat"] = contenders.run_byzerllm(home, "stat", "--model", "small")
        finally:
            contenders.run_byzerllm(home, "server", "stop")
    row["bytes_per_worker"] = (after - before) / WORKERS
    row["rss_mb"] = after / 2**20
    return row
