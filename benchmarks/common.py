"""What every benchmark shares: what machine this is, and where results are kept."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENTRY = ROOT / "train_async.py"
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """Processor, cores, memory, Python and date: what a figure is worth without is nothing."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "?",
    )
    memory = (
        int(
            next(
                line.split()[1]
                for line in Path("/proc/meminfo").read_text().splitlines()
                if "MemTotal" in line
            )
        )
        >> 20
    )
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": memory,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def keep(name: str, figures: Mapping[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
    print(f"kept in {path.relative_to(ROOT)}")
    return path


def train(*flags: str, entry: Path = ENTRY) -> dict[str, Any]:
    """One run of `entry` in a temporary folder: {"summary": ..., "train": [records], "eval":
    [records]}. Raises CalledProcessError with its output."""
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as folder:
        command = [sys.executable, str(entry), *flags, "--runs-dir", folder, "--name", "b"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
            done.check_returncode()
        run = Path(folder) / "b"
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return {
            "summary": json.loads((run / "summary.json").read_text()),
            **{kind: [r for r in rows if r["kind"] == kind] for kind in ("train", "eval", "push")},
        }


def spread(values: Sequence[float]) -> dict[str, float]:
    """What is kept of repeats."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def middle(value: Any) -> Any:
    """The median of a `spread`, for a table."""
    return value["median"] if isinstance(value, dict) else value


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    cells = [
        [str(h) for h in headers],
        *[[f"{c:.3f}" if isinstance(c, float) else str(c) for c in row] for row in rows],
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    for row in cells:
        print("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)))
