"""``python -m benchmarks.run [gateway] [paced] [deploy] [memory] [wire] [ray]``: see README.md in this folder."""

from __future__ import annotations

import argparse
import os
import sys

from benchmarks import contenders, deploy, gateway, memory, on_ray, paced, wire

NAMES = ("gateway", "paced", "deploy", "memory", "wire", "ray")


def main() -> int:
    """Run the named ones; 1 when an answer was not whole or a size over its limit, 2 when one could not run."""
    parser = argparse.ArgumentParser(prog="benchmarks/run", description="Measure byzerllm on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; all without a name")
    parser.add_argument("--peers", action="store_true", help="install and measure LiteLLM and sglang-router too")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement (5)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of gateway (3)")
    options = parser.parse_args()
    names = options.names or list(NAMES)
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"unknown benchmark {unknown[0]!r}: there are {', '.join(NAMES)}")
    if not 0 < options.seconds <= 60 or not 0 < options.rounds <= 20:
        parser.error("--seconds must be from 0 to 60 and --rounds from 1 to 20")
    _pin()
    try:
        failures = sum(_run(name, options) for name in names)
    except RuntimeError as error:
        print(f"benchmarks/run: {error}", file=sys.stderr)
        return 2
    return int(failures > 0)


def _run(name: str, options: argparse.Namespace) -> int:
    if name == "gateway":
        return gateway.run(options.rounds, options.seconds, options.peers)
    if name == "paced":
        return paced.run(options.seconds)
    if name == "deploy":
        return deploy.run(rounds=5)
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
