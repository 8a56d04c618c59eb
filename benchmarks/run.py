"""``python -m benchmarks.run [NAME ...] [engines [ENGINE ...]]``: see README.md."""

from __future__ import annotations

import argparse
import os
import sys

from benchmarks import contenders, deploy, engines, first, gateway, memory, on_ray, paced, wire

NAMES = ("gateway", "paced", "deploy", "memory", "wire", "ray", "first")
ENGINES = "engines"  # takes longer, and needs some that are installed


def main() -> int:
    """Run the named ones; 1 when an answer was not whole or a size over its limit, 2 when one could not run."""
    parser = argparse.ArgumentParser(prog="benchmarks/run", description="Measure byzerllm on this machine.")
    help_names = f"{', '.join(NAMES)}; all of these without a name. Or engines, and after it the ones to measure"
    parser.add_argument("names", nargs="*", metavar="NAME", help=help_names)
    parser.add_argument("--peers", action="store_true", help="install and measure LiteLLM and sglang-router too")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement (5)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of gateway and engines (3)")
    options = parser.parse_args()
    names, options.engines = _split(options.names or list(NAMES))
    for given, known in ((names, (*NAMES, ENGINES)), (options.engines, engines.ENGINES)):
        if unknown := sorted(set(given) - set(known)):
            parser.error(f"unknown: {unknown[0]!r}. There are {', '.join(known)}")
    if not 0 < options.seconds <= 60 or not 0 < options.rounds <= 20:
        parser.error("--seconds must be from 0 to 60 and --rounds from 1 to 20")
    if ENGINES not in names:
        _pin()
    try:
        failures = sum(_run(name, options) for name in names)
    except RuntimeError as error:
        print(f"benchmarks/run: {error}", file=sys.stderr)
        return 2
    return int(failures > 0)


def _split(names: list[str]) -> tuple[list[str], list[str]]:
    """The benchmarks, and the engines that are named after the last of them."""
    if ENGINES not in names:
        return names, []
    end = names.index(ENGINES) + 1
    return names[:end], names[end:]


def _run(name: str, options: argparse.Namespace) -> int:
    if name == ENGINES:
        return engines.run(options.engines, options.rounds)
    if name == "gateway":
        return gateway.run(options.rounds, options.seconds, options.peers)
    if name == "paced":
        return paced.run(options.seconds)
    if name == "deploy":
        return deploy.run(rounds=5)
    if name == "first":
        return first.run(options.rounds)
    if name == "ray":  # short rounds: what disturbs them then hits both servers alike
        return on_ray.run(3 * options.rounds, options.seconds / 5)
    return memory.run() if name == "memory" else wire.run()


def _pin() -> None:
    if not contenders.LOAD_CORE:
        print("this system cannot pin processes to cores: read the numbers with care", file=sys.stderr)
        return
    if contenders.LOAD_CORE == contenders.SERVER_CORE:
        print("there is one core for everything: the ratios mean little", file=sys.stderr)
    os.sched_setaffinity(0, contenders.LOAD_CORE)


if __name__ == "__main__":
    sys.exit(main())
