"""What the gateway costs in front of real engines, and our transformers host against ``transformers serve``.

Each engine is deployed by the real command, on a model of about 90M parameters. The same process is then asked
directly, with its own private key, and through the gateway, in turns, with 1, 4 and 8 streams at a time.

The time to the first token has bursts of its own, of answers of one token: in longer ones it depends most on where in a
step of the engine's a request arrives, which is no matter of the gateway. Luck has a part in it even so: an engine that
begins with the first of a burst's requests before the last one is there makes the others wait for a whole step. nginx
shows what any proxy adds there, and each difference comes with its 95% interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from benchmarks import contenders, report
from benchmarks.generation import Answers, Callers, Endpoint
from benchmarks.peers import extension
from scripts import tiny_gguf, tiny_hf

from byzerllm.control.store import Store
from byzerllm.engines.environments import Environments, in_current
from byzerllm.settings import Settings

CONNECTIONS = (1, 4, 8)
REQUESTS = 16  # a round
TOKENS = 64
FIRST_SECONDS = 20.0  # a round, for bursts of which only the first token counts
WARM_TOKENS = 8
MODEL = "bench"
SHAPE = tiny_gguf.Shape(hidden=768, layers=12, heads=12, kv_heads=4, vocab=8192)
SAY = " alpha beta gamma delta"
START_SECONDS = 300.0
BATCHING = ("--continuous-batching", "--cb-block-size", "32", "--cb-num-blocks", "512", "--cb-max-batch-tokens", "512")
SHARE_TARGET = 0.97  # of the engine's own tokens a second
FIRST_TARGET_MS = 2.0
REFERENCE, THROUGH, NGINX = "transformers serve", " through byzerllm", " through nginx"
# One core is left to the gateway and the load generator.
THREADS = str(max(1, len(os.sched_getaffinity(0)) - 1)) if hasattr(os, "sched_getaffinity") else "1"
PARAMS: dict[str, tuple[str, ...]] = {
    "llama_cpp": (f"n_threads={THREADS}", "n_ctx=512", "verbose=false"),
    "vllm": ("backend.max_model_len=512", "backend.enforce_eager=true", "backend.dtype=float32"),
    "transformers": ("backend.max_model_len=512", "backend.dtype=float32"),
    "deepspeed": ("backend.max_model_len=512", "backend.dtype=float32"),
}
ENGINES = tuple(PARAMS)

Family = list[psutil.Process]


@dataclass(frozen=True)
class Deployed:
    """A running engine, and the two ways to ask it. ``processes`` are those of the engine, and the server."""

    alone: Endpoint
    through: Endpoint
    processes: tuple[Family, Family]


@dataclass(frozen=True)
class Burst:
    """As many streams as are asked at a time, begun together, and the CPU seconds of engine and server meanwhile."""

    answers: Answers
    engine_cpu: float
    server_cpu: float

    @property
    def first(self) -> float:
        """Seconds to the first token, the mean of the streams."""
        return statistics.fmean(self.answers.first)


@dataclass
class Seen:
    """The bursts of one contender with so many streams at a time: those of whole answers, and of first tokens alone."""

    whole: list[Burst] = field(default_factory=list)
    firsts: list[Burst] = field(default_factory=list)


def run(names: Sequence[str], rounds: int) -> int:
    """Measure those that are installed; returns the number of answers that were not whole.

    Raises:
        RuntimeError: one cannot be started.
    """
    folder = engines_folder()
    rows: list[report.Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-engines-") as models:
        for name in names or ENGINES:
            if Environments(folder).find(name) is None and not in_current(name):
                print(f"without {name}: it is not installed (byzerllm engine install {name}, or scripts/engines)")
                continue
            rows += _measure(name, _model(name, Path(models)), folder, rounds)
    if not rows:
        raise RuntimeError("no engine is installed")
    return _publish(rows)


def engines_folder() -> Path:
    """Where engines are installed: for the tests, or for the user."""
    for_tests = Path(__file__).parents[1] / ".engines" / "engines"
    return for_tests if for_tests.is_dir() else Settings.read().engines


def _model(name: str, folder: Path) -> Path:
    """A model that never stops by itself, made once for all that read its kind."""
    path = folder / ("model.gguf" if name == "llama_cpp" else "model")
    if not path.exists():
        if name == "llama_cpp":
            tiny_gguf.write(path, say=SAY, loop=True, shape=SHAPE, kind="Q8_0")
        else:
            tiny_hf.write(path, say=SAY, loop=True, shape=SHAPE)
    return path


def _measure(name: str, model: Path, engines: Path, rounds: int) -> list[report.Row]:
    seen: dict[tuple[str, int], Seen] = defaultdict(Seen)
    with contextlib.ExitStack() as stack:
        deployed = stack.enter_context(_deployed(name, model, engines))
        fielded = [deployed.alone, deployed.through]
        proxied = [*fielded, *_nginx(stack, name, deployed.alone)]
        for connections in CONNECTIONS:
            for callers in _turns(proxied, connections, rounds, rounds * FIRST_SECONDS):
                seen[callers.endpoint.name, connections].firsts.append(_burst(callers, 1, deployed.processes))
        if name == "transformers":  # not before: these are busy also when nobody asks them
            fielded += _reference(stack, model, engines)
        for connections in CONNECTIONS:
            for callers in _turns(fielded, connections, rounds * REQUESTS // connections):
                seen[callers.endpoint.name, connections].whole.append(_burst(callers, TOKENS, deployed.processes))
        memory = dict(zip((deployed.alone.name, deployed.through.name), map(_rss, deployed.processes), strict=True))
    return [_row(name, who, connections, seen, memory) for who, connections in seen]


def _turns(fielded: Sequence[Endpoint], connections: int, least: int, seconds: float = 0.0) -> Iterator[Callers]:
    """Turn and turn about, one burst each: whatever else the machine does meets all alike. At least so many turns, and
    as many as begin within ``seconds``."""
    with contextlib.ExitStack() as stack:
        turns = [stack.enter_context(Callers(endpoint, connections)) for endpoint in fielded]
        for callers in turns:
            callers.burst(WARM_TOKENS)
        ends = time.monotonic() + seconds
        turn = 0
        while turn < least or time.monotonic() < ends:
            yield from turns if turn % 2 else reversed(turns)
            turn += 1


def _burst(callers: Callers, tokens: int, processes: Sequence[Family]) -> Burst:
    before = [_cpu(family) for family in processes]
    answers = callers.burst(tokens)
    engine, server = (_cpu(family) - cpu for family, cpu in zip(processes, before, strict=True))
    return Burst(answers, engine, server)


@contextlib.contextmanager
def _deployed(name: str, model: Path, engines: Path) -> Iterator[Deployed]:
    with tempfile.TemporaryDirectory(prefix="bench-byzerllm-") as folder:
        home = Path(folder)
        if engines.is_dir():
            (home / "engines").symlink_to(engines)
        command = ["deploy", "--model", MODEL, "--pretrained_model_type", "custom/auto", "--infer_backend", name]
        command += ["--model_path", str(model), "--worker_concurrency", str(max(CONNECTIONS))]
        with _environment(OMP_NUM_THREADS=THREADS, HF_HUB_OFFLINE="1"):
            contenders.run_byzerllm(home, *command, "--infer_params", *PARAMS[name], seconds=START_SECONDS)
        try:
            server = contenders.server_of(home)
            port, token, pid = asyncio.run(_process(home))
            engine = psutil.Process(pid)
            yield Deployed(
                alone=Endpoint(f"{name} alone", port, MODEL, token),
                through=Endpoint(f"{name}{THROUGH}", server.port, MODEL, contenders.KEY),
                processes=([engine, *engine.children(recursive=True)], [psutil.Process(server.pid)]),
            )
        finally:
            contenders.run_byzerllm(home, "server", "stop")


async def _process(home: Path) -> tuple[int, str, int]:
    """Port, private key and process of the one engine, which the server's own state file tells."""
    store = Store(home / "state.db")
    await store.open()
    try:
        [saved] = await store.load_engines()
    finally:
        await store.close()
    return saved.process.port, saved.process.token, saved.process.pid


def _reference(stack: contextlib.ExitStack, model: Path, engines: Path) -> list[Endpoint]:
    """``transformers serve`` with continuous batching and without, in the environment that our host runs in."""
    python = Path(Environments(engines).python("transformers"))
    started: list[Endpoint] = []
    for name, flags in ((REFERENCE, ()), (f"{REFERENCE} with batching", BATCHING)):
        port = contenders.free_port()
        line = [str(python.with_name("transformers")), "serve", str(model), "--device", "cpu", "--port", str(port)]
        try:
            variables = _serve_variables(stack, python)
            stack.enter_context(contenders.running([*line, *flags], port, (), START_SECONDS, **variables))
        except (RuntimeError, OSError) as error:
            print(f"without {name}: {str(error)[-500:]}")
            continue
        started.append(Endpoint(name, port, str(model)))
    return started


def _nginx(stack: contextlib.ExitStack, engine: str, alone: Endpoint) -> list[Endpoint]:
    """nginx before the engine, on whatever core is free, as our server is."""
    try:
        port = stack.enter_context(contenders.nginx(alone.port, ())).stream_port
    except RuntimeError as error:
        print(f"without nginx: {error}")
        return []
    return [Endpoint(f"{engine}{NGINX}", port, alone.model, alone.key)]


def _serve_variables(stack: contextlib.ExitStack, python: Path) -> dict[str, str]:
    cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-hf-"))
    (Path(cache) / "hub").mkdir()  # without it nothing is listed
    more = extension("transformers-serving", python, "fastapi", "openai", "rich")
    return {"HF_HOME": cache, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": THREADS, "PYTHONPATH": str(more)}


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _rss(family: Family) -> float:
    """In MB."""
    return sum(process.memory_info().rss for process in family) / 1e6


def _cpu(family: Family) -> float:
    return float(sum(sum(process.cpu_times()[:2]) for process in family))


def _row(
    engine: str, who: str, connections: int, seen: Mapping[tuple[str, int], Seen], memory: Mapping[str, float]
) -> report.Row:
    """The middle of all bursts. Share and difference are those of each burst to the engine's own beside it; the CPU is
    the gateway's, as a share of the engine's."""
    mine, alone = seen[who, connections], seen[f"{engine} alone", connections]
    through = who.endswith(THROUGH)
    rates = [(a.answers.rate, b.answers.rate) for a, b in _pairs(who, mine.whole, alone.whole)]
    firsts = [(a.first, b.first) for a, b in _pairs(who, mine.firsts, alone.firsts)]
    added = _middle([(a - b) * 1e3 for a, b in firsts]) if firsts else None
    engine_cpu = sum(a.engine_cpu for a in mine.whole)
    failed = [burst.answers for burst in (*mine.whole, *mine.firsts) if burst.answers.errors]
    return {
        "who": who,
        "streams": connections,
        "tokens_per_second": statistics.median(rate for rate, _ in rates) if rates else None,
        "ttft_ms": statistics.median(first for first, _ in firsts) * 1e3 if firsts else None,
        "share": statistics.median(a / b for a, b in rates) if rates else None,
        "added_ttft_ms": added[1] if added else None,
        "give_or_take_ms": _give_or_take(added, len(firsts)) if added else None,
        "gateway_cpu": sum(a.server_cpu for a in mine.whole) / engine_cpu if through and engine_cpu else None,
        "rss_mb": memory.get(who),
        "errors": sum(answers.errors for answers in failed),
        "first_error": failed[0].first_error if failed else "",
    }


def _pairs(who: str, mine: Sequence[Burst], alone: Sequence[Burst]) -> list[tuple[Burst, Burst]]:
    """Each burst with the engine's own beside it, where both have whole answers; none of a measure not taken.

    Raises:
        RuntimeError: there is no such pair.
    """
    if not mine:
        return []
    pairs = [(a, b) for a, b in zip(mine, alone, strict=True) if a.answers.tokens and b.answers.tokens]
    if not pairs:
        raise RuntimeError(f"{who}: no whole answer; the first error: {mine[0].answers.first_error}")
    return pairs


def _middle(values: Sequence[float]) -> list[float]:
    """The three quartiles."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3


def _give_or_take(quartiles: Sequence[float], count: int) -> float:
    """How far the median of so many values may be off: its 95% interval, the notch of a box plot (McGill, 1978)."""
    return float(1.57 * (quartiles[2] - quartiles[0]) / count**0.5)


def _publish(rows: list[report.Row]) -> int:
    report.table(
        f"engines: streams of {TOKENS} tokens",
        [{key: value for key, value in row.items() if key != "first_error"} for row in rows],
    )
    for row in rows:
        who, streams = row["who"], row["streams"]
        about = f"give or take {row['give_or_take_ms']:.2f}" if row["give_or_take_ms"] is not None else ""
        if who.endswith(THROUGH):
            share = report.verdict(row["share"], SHARE_TARGET, at_least=True)
            added = report.verdict(row["added_ttft_ms"], FIRST_TARGET_MS, at_least=False)
            print(f"{who}, {streams} at a time: share of the tokens {share}; added ms to the first {added}, {about}")
        elif who.endswith(NGINX):
            print(f"{who}, {streams} at a time: added ms to the first {row['added_ttft_ms']:.2f}, {about}")
        elif who.startswith(REFERENCE):
            print(f"our host / {who}, {streams} at a time: {report.verdict(1 / row['share'], 1.0, at_least=True)}")
        if row["errors"]:
            print(f"{who}, {streams} at a time: {row['errors']} errors, the first: {row['first_error']}")
    report.write("engines", rows, share_target=SHARE_TARGET, added_ttft_target_ms=FIRST_TARGET_MS)
    report.bars(
        "engines",
        {f"tokens a second, {n} at a time": {r["who"]: r["tokens_per_second"] for r in rows
                                             if r["streams"] == n and r["share"]}
         for n in CONNECTIONS},
    )  # fmt: skip
    return sum(int(row["errors"]) for row in rows if not row["who"].startswith(REFERENCE))
