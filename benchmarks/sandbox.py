"""Calls a second of the sandbox, for a program that only prints, by how many run at once; and what
a new Python for every call would do, without any walls.

    python -m benchmarks.sandbox [--seconds 10] [--keep]

`--keep` writes results/sandbox.json. Every answer is compared; a wrong one ends the measurement."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.common import keep, table
from sandbox.pool import Sandbox

CODE, OUTPUT = "print(1)", "1\n"
Call = Callable[[], Awaitable[str]]


async def measure(seconds: float) -> list[dict[str, Any]]:
    cores = len(os.sched_getaffinity(0))
    rows = []
    for workers in sorted({1, cores, 2 * cores}):
        async with Sandbox(num_workers=workers) as sandbox:

            async def in_sandbox(pool: Sandbox = sandbox) -> str:
                return (await pool.run(CODE)).stdout

            rows.append({"what": "sandbox", **await load(in_sandbox, workers, seconds)})
    async with Sandbox(num_workers=cores, preload=["numpy"]) as sandbox:

        async def with_numpy(pool: Sandbox = sandbox) -> str:
            return (await pool.run("import numpy; print(numpy.int64(1))")).stdout

        rows.append({"what": "sandbox, numpy preloaded", **await load(with_numpy, cores, seconds)})
    rows.append({"what": "python -I -S, no walls", **await load(new_python, cores, seconds)})
    return rows


async def load(call: Call, at_once: int, seconds: float) -> dict[str, Any]:
    """Calls one after another in `at_once` tasks, for `seconds`, after one call each."""
    took: list[float] = []

    async def one_after_another(until: float) -> None:
        while True:
            start = time.perf_counter()
            output = await call()
            if output != OUTPUT:
                raise RuntimeError(f"it printed {output!r}: expected {OUTPUT!r}")
            took.append(time.perf_counter() - start)
            if time.perf_counter() >= until:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one_after_another(0.0))
    took.clear()
    start, before = time.perf_counter(), os.times()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one_after_another(start + seconds))
    elapsed, after = time.perf_counter() - start, os.times()
    own = after.user + after.system - before.user - before.system
    ordered = sorted(took)
    return {
        "at_once": at_once,
        "calls_per_second": round(len(took) / elapsed, 1),
        "median_ms": round(statistics.median(ordered) * 1000, 2),
        "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))] * 1000, 2),
        "owner_cpu_ms_per_call": round(own / len(took) * 1000, 3),
    }


async def new_python() -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", CODE), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return output.decode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row")
    parser.add_argument("--keep", action="store_true", help="write results/sandbox.json")
    given = parser.parse_args()
    rows = asyncio.run(measure(given.seconds))
    table(list(rows[0]), [list(row.values()) for row in rows])
    if given.keep:
        keep("sandbox", {"seconds": given.seconds, "rows": rows})


if __name__ == "__main__":
    main()
