"""The replay buffer beside TransferQueue, verl's and slime's ways, and a bare memory copy; and how
fast a full one opens.

    python -m benchmarks.buffer                                     # without TransferQueue
    python -m benchmarks.buffer --transferqueue-python /tmp/tq/bin/python
    python -m benchmarks.buffer --quick                             # small, keeps nothing

TransferQueue pins its own versions and so needs an environment of its own:

    python3.11 -m venv /tmp/tq && /tmp/tq/bin/pip install torch==2.13.0 && /tmp/tq/bin/pip \
        install TransferQueue==0.1.11

Batched: 256 samples of 1024 response tokens, in groups of 8. Single: one sample at a time, each put
and then got. The columns are tokens int64, loss_mask uint8, rollout_log_probs float32 and one
version span; GB/s counts those bytes, the same for all, whatever a contender writes. All get arrays
in these dtypes, except slime's way and the row "from lists", which get Python lists, as engines
answer. Rounds go around the contenders of this process; TransferQueue runs beside nothing, before
them. Medians; ratios of rounds."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import uvloop

from benchmarks import buffer_open
from benchmarks.buffer_contenders import Durability, ListAndRayPut, MemoryCopy, RayQueue, Slipstream
from benchmarks.buffer_load import BYTES_FORMULA, Load, Times, figures, ratio
from benchmarks.common import ROOT, keep, table
from pipeline.run.outcome import collect_rarely

MODES = ("batched", "single")
DURABILITIES: tuple[Durability, ...] = ("memory", "process", "fsync")
COPY, QUEUE, LIST, TRANSFER_QUEUE = (
    "memory copy",
    "Ray actor queue (verl)",
    "list + ray.put (slime)",
    "TransferQueue",
)
NOT_INSTALLED = (
    "not installed: give --transferqueue-python an interpreter with `pip install torch==2.13.0; pip"
    " install TransferQueue==0.1.11`"
)
Rounds = dict[str, list[Times]]


class Contender(Protocol):
    async def round(self, *, check: bool = False) -> Times: ...
    def close(self) -> None: ...


def contenders(load: Load, folder: Path, *, single: bool, with_ray: bool) -> dict[str, Contender]:
    mode = MODES[single]
    found: dict[str, Contender] = {COPY: MemoryCopy(load, single=single)}
    for durability in DURABILITIES:
        found[f"slipstream {durability}"] = Slipstream(
            folder / mode / durability, durability, load, single=single
        )
    found["slipstream process, from lists"] = Slipstream(
        folder / mode / "lists", "process", load, single=single, lists=True
    )
    if with_ray:
        found |= {QUEUE: RayQueue(load, single=single), LIST: ListAndRayPut(load, single=single)}
    return found


async def run_rounds(found: Mapping[str, Contender], num_rounds: int, num_warmup: int) -> Rounds:
    """Around the contenders, so that the machine's moods meet all of them.

    The first warm-up round checks what comes back.
    """
    rounds: Rounds = {name: [] for name in found}
    for number in range(-num_warmup, num_rounds):
        for name, contender in found.items():
            gc.collect()
            times = await contender.round(check=number == -num_warmup)
            if number >= 0:
                rounds[name].append(times)
    return rounds


def transfer_queue(
    python: str | None, load: Load, num_rounds: int, num_warmup: int
) -> dict[str, Any] | None:
    """Its (put, get) seconds by mode and its versions; None without it. Raises RuntimeError with
    its output when it fails."""
    if python is None:
        return None
    command = [
        python,
        str(ROOT / "benchmarks" / "transferqueue_contender.py"),
        "--samples",
        str(load.num_samples),
    ]
    command += ["--response-tokens", str(load.response_tokens), "--singles", str(load.num_singles)]
    command += ["--rounds", str(num_rounds), "--warmup", str(num_warmup)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"TransferQueue's side failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for mode in MODES:
        answer[mode] = [Times(put=put, get=get) for put, get in answer[mode]]
    return answer


@contextlib.contextmanager
def ray_cluster(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    import ray

    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


def measure(load: Load, a: argparse.Namespace) -> tuple[dict[str, Rounds], dict[str, str] | None]:
    """({mode: rounds by contender}, TransferQueue's versions)."""
    other = transfer_queue(a.transferqueue_python, load, a.rounds, a.warmup)
    out: dict[str, Rounds] = {}
    with (
        ray_cluster(a.ray),
        tempfile.TemporaryDirectory(prefix="slipstream-bench-", dir=a.directory) as folder,
    ):
        for mode in MODES:
            found = contenders(load, Path(folder), single=mode == "single", with_ray=a.ray)
            out[mode] = uvloop.run(run_rounds(found, a.rounds, a.warmup))
            for contender in found.values():
                contender.close()
            if other is not None:
                out[mode][TRANSFER_QUEUE] = other[mode]
    return out, other and other["versions"]


def aims(rounds: Mapping[str, Rounds]) -> dict[str, dict[str, Any]]:
    """What was aimed at, what was found, and whether that is met; where TransferQueue is missing
    its aim has no figure."""
    single, batched = rounds["single"], rounds["batched"]

    def seconds(of: Rounds, name: str, what: str) -> list[float]:
        return [getattr(t, what) for t in of[name]]

    found: dict[str, dict[str, Any]] = {}
    if TRANSFER_QUEUE in single:
        for durability in DURABILITIES[:2]:
            value = statistics.median(seconds(single, TRANSFER_QUEUE, "put")) / statistics.median(
                seconds(single, f"slipstream {durability}", "put")
            )
            found[f"single put over TransferQueue's, {durability}"] = {
                "aim": ">= 50",
                "found": value,
                "met": value >= 50,
            }
    value = ratio(seconds(batched, COPY, "get"), seconds(batched, "slipstream process", "get"))
    found["batched get over the memory copy"] = {
        "aim": ">= 0.5",
        "found": value,
        "met": value >= 0.5,
    }
    for mode in MODES:
        for what in ("put", "get"):
            value = ratio(
                seconds(rounds[mode], "slipstream process", what),
                seconds(rounds[mode], "slipstream memory", what),
            )
            found[f"time of process over memory, {mode} {what}"] = {
                "aim": "<= 1.3",
                "found": value,
                "met": value <= 1.3,
            }
    return found


def report(load: Load, rounds: Mapping[str, Rounds]) -> dict[str, Any]:
    found = {
        mode: {
            name: figures(
                times, load.num_singles if mode == "single" else load.num_samples, load.sample_bytes
            )
            for name, times in rounds[mode].items()
        }
        for mode in MODES
    }
    rows: list[Sequence[Any]] = []
    for mode in MODES:
        for name, sides in found[mode].items():
            cells = [
                f"{sides[w][k]:,.{d}f}"
                for w in ("put", "get")
                for k, d in (("samples_per_second", 0), ("gb_per_second", 3))
            ]
            rows.append([name, mode, *cells])
        if TRANSFER_QUEUE not in found[mode]:
            rows.append([TRANSFER_QUEUE, mode, "not installed", "", "", ""])
    table(["", "", "put samples/s", "put GB/s", "get samples/s", "get GB/s"], rows)
    return found


def report_open(rows: Sequence[Mapping[str, Any]]) -> None:
    mib = float(1 << 20)
    names = (
        "read_journal_seconds",
        "ledger_seconds",
        "buffer_seconds",
        "open_seconds",
        "first_take_seconds",
    )
    headers = [
        "waiting samples",
        "journal MiB",
        "segments MiB",
        *(n.removesuffix("_seconds") + " s" for n in names),
        "RSS added MiB",
    ]
    cells = [
        [
            r["samples"],
            r["journal_bytes"] / mib,
            r["segment_bytes"] / mib,
            *(r[n] for n in names),
            r["resident_bytes_added"] / mib,
        ]
        for r in rows
    ]
    table(headers, cells)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--transferqueue-python",
        help="an interpreter that has TransferQueue; without it that row is empty",
    )
    p.add_argument(
        "--no-ray",
        dest="ray",
        action="store_false",
        help="leave verl's and slime's ways out, which need Ray",
    )
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--warmup", type=int, default=3, help="rounds before those; at least 1")
    p.add_argument(
        "--directory", type=Path, help="where buffers are written; default: the temporary folder"
    )
    p.add_argument(
        "--open-samples",
        type=int,
        nargs="*",
        default=[10_000, 100_000, 1_000_000],
        help="sizes of the buffers that are opened",
    )
    p.add_argument("--quick", action="store_true", help="small, and keeps nothing")
    return p


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    a = parser().parse_args(argv)
    load = Load()
    if a.quick:
        load, a.rounds, a.warmup = (
            Load(num_samples=16, group_size=4, response_tokens=32, num_singles=4),
            2,
            1,
        )
        a.open_samples = [n for n in a.open_samples if n <= 10_000][:1]
    collect_rarely()  # as in a run
    rounds, versions = measure(load, a)
    found = report(load, rounds)
    reached = aims(rounds)
    table(["", "aim", "found", "met"], [[name, *row.values()] for name, row in reached.items()])
    opened = buffer_open.measure(a.open_samples, a.directory)
    report_open(opened)
    result = {
        "load": {name: getattr(load, name) for name in load.__slots__},
        "payload_bytes": {"a_sample": load.sample_bytes, "formula": BYTES_FORMULA},
        "rounds": a.rounds,
        "transferqueue": versions or NOT_INSTALLED,
        **found,
        "aims": reached,
        "open": opened,
    }
    if not a.quick:
        keep("buffer", result)
    return result


if __name__ == "__main__":
    main()
