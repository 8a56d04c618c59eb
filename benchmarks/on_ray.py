"""The server on a Ray cluster beside the embedded one, on the same upstream: speed, commands, memory.

No request goes through Ray, so both have to be as fast; what Ray costs is a slower start and the memory of its actors.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import uvloop
from benchmarks import contenders, gateway, ray_cluster, report
from benchmarks.load import MODEL, Load, closed_loop, percentile
from scripts import tiny_gguf

CPUS = 4  # what the cluster offers; Ray starts as many processes ahead
COMMAND_ROUNDS = 3
MANY = 1000
MEASURED_WORKERS = 10_000
PRIVATE_WORKERS = 4
SETTLE = 1.0
WARM_UP = 0.2
_ENGINE = ("--pretrained_model_type", "custom/auto", "--infer_backend", "llama_cpp")
_ENGINE_PARAMS = ("--infer_params", "n_threads=1", "verbose=false")

_RATE = ("rate", "p50_ms", "p99_ms", "cpu_us")
_DELAY = ("p50_us", "p99_us")
_MEASURES = {"plain": _RATE, "stream": _RATE, "single": _DELAY}
_RATIOS = {"plain": ("rate", "cpu_us"), "stream": ("rate", "cpu_us"), "single": _DELAY}
_TITLES = {
    "plain": "plain answers a second, 32 connections",
    "stream": "200-chunk streams a second, 32 connections",
    "single": "a plain answer on one connection",
}

Rounds = dict[tuple[str, str], list[report.Row]]  # of a kind of load and a server


@dataclass(frozen=True)
class Site:
    """Where the commands deploy: ``address`` is the value of ``--ray_address``."""

    name: str
    home: Path
    address: str

    def run(self, *arguments: str) -> float:
        """Run ``byzerllm`` for this site; the seconds it took."""
        return contenders.run_byzerllm(self.home, *arguments, "--ray_address", self.address)

    def deploy(self, model: str, upstream: int, workers: int) -> float:
        """Deploy an instance on the mock; the seconds it took."""
        began = time.perf_counter()
        # However many they are, the cluster has the CPUs that they are counted with.
        flags = ("--ray_address", self.address, "--cpus_per_worker", f"{0.1 / workers:g}")
        contenders.deploy(self.home, model, upstream, workers, *flags)
        return time.perf_counter() - began

    def deploy_private(self, model: str, path: Path, workers: int) -> float:
        """Deploy a model of weights, until it is ready; the seconds it took."""
        arguments = ["deploy", "--model", model, *_ENGINE, "--model_path", str(path), "--num_workers", str(workers)]
        return self.run(*arguments, *_ENGINE_PARAMS)

    def server(self) -> contenders.Contender:
        """The site's server, which runs."""
        home = self.home / "ray" if self.name == "ray" else self.home
        return replace(contenders.server_of(home), name=self.name)


def run(rounds: int, seconds: float) -> int:
    """Measure one after the other; returns the number of answers that were not whole."""
    with contextlib.ExitStack() as stack:
        model = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-model-"))) / "tiny.gguf"
        tiny_gguf.write(model)
        tokens = 2 * max(gateway.KINDS.values())
        upstream = stack.enter_context(contenders.mock("--tokens", str(tokens)))
        ray = stack.enter_context(ray_cluster.cluster(CPUS))
        addresses = {"embedded": "embedded", "ray": ray.address}
        commands = _commands(addresses, upstream.port, model)
        seen = _speed(addresses, upstream, rounds, seconds)
        memory = _memory(addresses, ray, upstream.port, model)
    return _publish(seen, commands, memory, ray.seconds)


@contextlib.contextmanager
def _site(name: str, address: str) -> Iterator[Site]:
    """A fresh home; its server, if one was started, is stopped at the end."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as home, contenders.on_core(contenders.CORES):
        site = Site(name, Path(home), address)
        try:
            yield site
        finally:
            site.run("server", "stop")


# -- Commands ----------------------------------------------------------------------------------------------------


def _commands(addresses: Mapping[str, str], upstream: int, model: Path) -> list[report.Row]:
    """The seconds of each command, median over rounds in fresh homes."""
    taken: dict[str, dict[str, list[float]]] = {name: {} for name in addresses}
    for _ in range(COMMAND_ROUNDS):
        for name, address in addresses.items():
            with _site(name, address) as site:
                round_of = {
                    "deploy, no server runs": site.deploy("cold", upstream, 1),
                    "deploy, server runs": site.deploy("warm", upstream, 1),
                    f"deploy, {MANY:,} SaaS workers": site.deploy("many", upstream, MANY),
                    "deploy, tiny GGUF": site.deploy_private("weights", model, 1),
                    "stat": site.run("stat", "--model", "cold"),
                }
            for command, took in round_of.items():
                taken[name].setdefault(command, []).append(took)
    return [
        {"command": command, **{name: statistics.median(taken[name][command]) for name in addresses}}
        for command in taken["ray"]
    ]


# -- Speed -------------------------------------------------------------------------------------------------------


def _speed(addresses: Mapping[str, str], upstream: contenders.Contender, rounds: int, seconds: float) -> Rounds:
    """Short rounds, the servers in turn and each first in every other round, so that a disturbance hits both."""
    seen: Rounds = {}
    with contextlib.ExitStack() as stack:
        servers = []
        for name, address in addresses.items():
            site = stack.enter_context(_site(name, address))
            site.deploy(MODEL, upstream.port, 64)
            servers.append(site.server())
            ray_cluster.pin(servers[-1].pid, contenders.SERVER_CORE)
        with contenders.on_core(contenders.LOAD_CORE):
            for number in range(rounds):
                order = servers if number % 2 == 0 else servers[::-1]
                for kind in gateway.KINDS:
                    for server in order:
                        seen.setdefault((kind, server.name), []).append(gateway.measure(server, kind, seconds))
                for contender in (upstream, *order):
                    seen.setdefault(("single", contender.name), []).append(_single(contender, seconds))
    return seen


def _single(contender: contenders.Contender, seconds: float) -> report.Row:
    """The latency of a plain answer on the one connection that there is."""
    load = Load(contender.port, False, gateway.KINDS["plain"], 1, contenders.KEY)
    uvloop.run(closed_loop(load, seconds=WARM_UP))
    result = uvloop.run(closed_loop(load, seconds=seconds))
    return {
        "p50_us": percentile(result.latencies, 0.50) * 1e6,
        "p99_us": percentile(result.latencies, 0.99) * 1e6,
        "errors": result.errors,
        "first_error": result.first_error,
    }


# -- Memory ------------------------------------------------------------------------------------------------------


def _memory(addresses: Mapping[str, str], ray: ray_cluster.Cluster, upstream: int, model: Path) -> list[report.Row]:
    rows: dict[str, report.Row] = {}
    for name, address in addresses.items():
        with _site(name, address) as site:
            for what, size in _memory_of(site, ray, upstream, model).items():
                rows.setdefault(what, {"memory": what, "embedded": None})[name] = size
    return list(rows.values())


def _memory_of(site: Site, ray: ray_cluster.Cluster, upstream: int, model: Path) -> dict[str, float]:
    """Sizes in MB, and of a SaaS worker in bytes."""
    # The second instance of one worker pays for whatever is imported late; the third is pure.
    for name in ("first", "second"):
        site.deploy(name, upstream, 1)
    time.sleep(SETTLE)
    server = site.server()
    before = server.rss
    sizes = {"server, MB": _mb(psutil.Process(server.pid))}
    site.deploy("many", upstream, MEASURED_WORKERS)
    time.sleep(SETTLE)
    sizes["SaaS worker, bytes"] = (server.rss - before) / MEASURED_WORKERS
    site.deploy_private("weights", model, PRIVATE_WORKERS)
    time.sleep(SETTLE)
    if site.name == "ray":
        holders = ray.actors("EngineHolder")
        if len(holders) != PRIVATE_WORKERS:
            raise RuntimeError(f"{PRIVATE_WORKERS} workers have {len(holders)} holders")
        guardians = [
            child for holder in holders for child in holder.children() if "byzerllm-guardian" in child.cmdline()
        ]
        sizes["idle private worker over its engine, MB"] = (
            sum(_mb(process) for process in (*holders, *guardians)) / PRIVATE_WORKERS
        )
        sizes["actor of an instance for older clients, MB"] = statistics.mean(map(_mb, ray.actors("LegacyInstance")))
    return sizes


def _mb(process: psutil.Process) -> float:
    return ray_cluster.private_bytes(process) / 2**20


# -- Results -----------------------------------------------------------------------------------------------------


def _publish(seen: Rounds, commands: list[report.Row], memory: list[report.Row], start: float) -> int:
    speeds = [_middle(kind, name, rounds) for (kind, name), rounds in seen.items()]
    _add_delays(speeds)
    ratios = {}
    for kind, title in _TITLES.items():
        report.table(title, [_shown(row) for row in speeds if row["kind"] == kind])
        for measure in _RATIOS[kind]:
            ratios[f"{kind} {measure}"] = ratio = _ratio(seen[kind, "embedded"], seen[kind, "ray"], measure)
            half = f"half of the rounds: {ratio['low']:.2f} to {ratio['high']:.2f}"
            print(f"ray / embedded, {measure}: {ratio['median']:.2f} ({half})")
    report.table(f"seconds, median of {COMMAND_ROUNDS}; ray start took {start:.1f} s", commands)
    report.table(f"memory: PSS; of a SaaS worker the growth of RSS over {MEASURED_WORKERS:,}", memory)
    report.write("ray", speeds, ratios=ratios, commands=commands, memory=memory, ray_start=start)
    panels = {_TITLES[kind]: {r["server"]: r["rate"] for r in speeds if r["kind"] == kind} for kind in gateway.KINDS}
    panels[f"{_TITLES['single']}, us"] = {row["server"]: row["p50_us"] for row in speeds if row["kind"] == "single"}
    report.bars("ray", panels)
    for row in speeds:
        if row["errors"]:
            print(f"{row['server']}, {row['kind']}: {row['errors']} errors, the first: {row['first_error']}")
    return sum(int(row["errors"]) for row in speeds)


def _shown(row: report.Row) -> report.Row:
    return {key: value for key, value in row.items() if key not in ("kind", "first_error")}


def _add_delays(speeds: Sequence[report.Row]) -> None:
    """What a server adds to the answers of the mock itself."""
    single = {row["server"]: row for row in speeds if row["kind"] == "single"}
    for row in single.values():
        for measure in _DELAY:
            row[f"added_{measure}"] = row[measure] - single["direct"][measure]


def _middle(kind: str, name: str, rounds: Sequence[report.Row]) -> report.Row:
    """The medians of the rounds."""
    numbers = {key: statistics.median(row[key] for row in rounds) for key in _MEASURES[kind]}
    return {
        "kind": kind,
        "server": name,
        **numbers,
        "errors": sum(row["errors"] for row in rounds),
        "first_error": next((row["first_error"] for row in rounds if row["first_error"]), ""),
    }


def _ratio(embedded: Sequence[report.Row], ray: Sequence[report.Row], measure: str) -> dict[str, float]:
    """Ray's over embedded's in each round: the median, and the quartiles, which tell how noisy it is."""
    each = [theirs[measure] / ours[measure] for ours, theirs in zip(embedded, ray, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
    return {"median": middle, "low": low, "high": high}
