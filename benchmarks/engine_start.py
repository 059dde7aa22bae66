"""What an engine takes to start on a CPU: with its processes as copies of its server, and with an
interpreter for each, as SGLang starts them.

    python -m benchmarks.engine_start [--rounds 5]

One SGLang server of a tiny model after the other, by turns. Prints and keeps medians, least and
most of: seconds until it takes requests; cpu_seconds of all its processes by then;
memory_mebibytes, with what they share counted once (PSS)."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import ROOT, keep, middle, spread, table
from compat import FORKS
from pipeline.models.resolve import resolve_checkpoint
from stages.engine.launch import Engine
from stages.engine.spec import EngineSpec

MODEL = f"tiny:{ROOT / 'configs' / 'models' / 'quickstart-qwen3.yaml'}"
FIGURES = ("seconds", "cpu_seconds", "memory_mebibytes")


class Interpreters(EngineSpec):
    """As SGLang starts its processes."""

    def environment(self, base: Mapping[str, str], scratch: Path) -> dict[str, str]:
        return {k: v for k, v in super().environment(base, scratch).items() if k != FORKS}


async def start(kind: type[EngineSpec], folder: Path) -> dict[str, float]:
    engine = Engine(
        kind(
            index=0,
            model_path=resolve_checkpoint(MODEL),
            log_path=folder / "engine.log",
            device="cpu",
            dtype="float32",
        )
    )
    began = time.monotonic()
    try:
        await engine.start(0, 300.0)
        seconds = time.monotonic() - began
        processes = [psutil.Process(pid) for pid in engine._members()]
        return {
            "seconds": seconds,
            "cpu_seconds": sum(sum(p.cpu_times()[:2]) for p in processes),
            "memory_mebibytes": sum(p.memory_full_info().pss for p in processes) / (1 << 20),
        }
    finally:
        await engine.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ways = {"copies": EngineSpec, "interpreters": Interpreters}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as folder:
        for _ in range(options.rounds):
            for name, kind in ways.items():
                found[name].append(asyncio.run(start(kind, Path(folder))))
    rows: list[dict[str, Any]] = [
        {"way": name} | {figure: spread([r[figure] for r in runs]) for figure in FIGURES}
        for name, runs in found.items()
    ]
    table(["way", *FIGURES], [[r["way"], *(middle(r[f]) for f in FIGURES)] for r in rows])
    keep("engine_start", {"rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
