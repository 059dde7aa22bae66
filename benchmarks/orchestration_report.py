"""What benchmarks/orchestration.py prints and keeps."""

from __future__ import annotations

import statistics

from benchmarks.common import keep, table
from benchmarks.orchestration_load import BARE, LATENCY_SECONDS, Load


def report(
    load: Load,
    rounds: list[dict[str, dict[str, float]]],
    copied: dict[str, dict[str, dict[str, float]]],
) -> None:
    """Medians over rounds. Ratios are of two sides of one round, which ran one after the other on
    the same machine; that of CPU time is the one to trust where other programs run beside."""
    sides = list(rounds[0])
    middle = {
        side: {name: statistics.median(r[side][name] for r in rounds) for name in rounds[0][side]}
        for side in sides
    }
    for side in sides:
        other = f"{BARE} x {side.split()[0]}"
        of_bare = [(r[other if other in r else BARE], r[side]) for r in rounds]
        middle[side]["throughput_ratio"] = statistics.median(
            s["samples_per_second"] / b["samples_per_second"] for b, s in of_bare
        )
        middle[side]["cpu_ratio"] = statistics.median(
            b["cpu_microseconds_per_sample"] / s["cpu_microseconds_per_sample"] for b, s in of_bare
        )
    names = {
        "samples_per_second": "samples/s",
        "cpu_microseconds_per_sample": "CPU us/sample",
        "driver_cpu_microseconds_per_sample": "of the driver",
        "throughput_ratio": "samples/s ratio",
        "cpu_ratio": "CPU ratio",
    }
    table(["", *names.values()], [[s, *(middle[s].get(n, "") for n in names)] for s in sides])
    print(f"{load.concurrency} samples under way; aim: a ratio of 0.7 for the pipeline")
    for kind, by_side in copied.items():
        for side, figures in by_side.items():
            print(
                f"{kind}, {side}: the driver reads and writes"
                f" {figures['driver_io_per_payload_byte']:.2f} bytes a payload byte, and takes"
                f" {figures['driver_cpu_microseconds_per_sample'] / 1e3:.2f} ms of CPU a sample"
            )
    described = {
        **{name: getattr(load, name) for name in load.__slots__},
        "latency_seconds": LATENCY_SECONDS,
    }
    keep(
        "orchestration",
        {
            "load": described,
            "rounds": len(rounds),
            **middle,
            **{kind.replace(" ", "_"): sides for kind, by_side in copied.items()},
        },
    )
