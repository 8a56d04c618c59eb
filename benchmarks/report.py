"""Tables on the terminal, and JSON and a plot beside them in ``results/``."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")

Row = dict[str, Any]


def table(title: str, rows: Sequence[Row]) -> None:
    """Print the rows, one column a key of the first."""
    columns = list(rows[0])
    cells = [columns, *([_cell(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    print(f"\n{title}")
    for line in cells:
        print(
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def verdict(value: float, target: float, *, at_least: bool) -> str:
    """How a ratio stands to its target."""
    met = value >= target if at_least else value <= target
    sign = ">=" if at_least else "<="
    return f"{value:.2f} (target {sign} {target:g}: {'met' if met else 'MISSED'})"


def write(name: str, rows: Sequence[Row], **more: Any) -> None:
    """Write ``results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    result = {
        "benchmark": name,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "rows": rows,
        **more,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "load": [round(x, 2) for x in os.getloadavg()],
    }


def bars(name: str, panels: dict[str, dict[str, float]]) -> None:
    """Write ``results/NAME.png``: one panel of bars for each title."""
    try:
        importlib.import_module("matplotlib").use("agg")
    except ImportError:
        print("no plot: pip install -r benchmarks/requirements.txt")
        return
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.6), squeeze=False)
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        drawn = axis.bar(list(values), list(values.values()), color="#4477aa")
        axis.bar_label(drawn, labels=[_cell(v) for v in values.values()], fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8, rotation=20)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=120)
    pyplot.close(figure)
    print(f"wrote {RESULTS / name}.png")
