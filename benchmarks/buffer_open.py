"""How long it takes a fresh process to open a buffer full of groups that wait, and how much memory,
by their number.

    # the fresh process: opens what is there, prints JSON
    python -m benchmarks.buffer_open DIRECTORY

The directory is what a run leaves that was killed before its first checkpoint: segments, and a
journal that admits and puts every group. It is opened as a restart does it
(pipeline/wiring/assemble.py): journal, ledger, buffer; then the first group is recalled and taken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks.buffer_load import Load, make_groups
from benchmarks.common import ROOT
from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from buffers.replay_buffer import ReplayBuffer
from configs.schema import AsyncConfig
from pipeline.core.types import Group
from pipeline.schedule.clock import RolloutClock

GROUP_SIZE, RESPONSE_TOKENS = 8, 32
FOR_EVER = 1 << 40


def measure(counts: Iterable[int], parent: Path | None) -> list[dict[str, Any]]:
    """A row a count of samples."""
    rows = []
    for count in counts:
        with TemporaryDirectory(prefix="slipstream-bench-", dir=parent) as folder:
            fill(Path(folder), count // GROUP_SIZE)
            command = [sys.executable, "-m", "benchmarks.buffer_open", folder]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"opening {count} samples failed:\n{done.stderr[-3000:]}")
            rows.append({"samples": count, **json.loads(done.stdout)})
    return rows


def fill(directory: Path, num_groups: int) -> None:
    load = Load(num_samples=GROUP_SIZE, group_size=GROUP_SIZE, response_tokens=RESPONSE_TOKENS)
    (samples,) = make_groups(load, single=False)
    buffer = ReplayBuffer(directory, _config(), _clock(num_groups))

    async def put_all() -> None:
        for _ in range(num_groups):
            a = await buffer.admit()
            await buffer.put(
                Group(
                    group_index=a.group_index,
                    deadline=a.deadline,
                    admitted_version=a.policy_version,
                    samples=samples,
                )
            )

    asyncio.run(put_all())
    buffer.close()


def open_and_take(directory: Path) -> dict[str, Any]:
    before = _resident_bytes()
    start = perf_counter()
    entries, _ = read_journal(directory / FILE_NAME)
    read = perf_counter()
    ledger = Ledger(entries)
    replayed = perf_counter()
    num_entries = len(entries)
    del entries  # as in assemble.py, where they go with the function's frame
    clock = _clock(1)
    begin = perf_counter()
    buffer = ReplayBuffer(directory, _config(), clock, ledger=ledger)
    opened = perf_counter()
    after = _resident_bytes()
    again = perf_counter()
    admission = buffer.try_admit()
    assert admission is not None and buffer.recall(admission.group_index) == "complete", (
        "the first group is there"
    )
    (group,) = asyncio.run(buffer.take(0))
    taken = perf_counter()
    assert len(group.samples) == GROUP_SIZE and all(
        len(s.tokens) == RESPONSE_TOKENS for s in group.samples
    )
    return {
        "journal_bytes": (directory / FILE_NAME).stat().st_size,
        "segment_bytes": sum(p.stat().st_size for p in directory.glob("*.arrow")),
        "entries": num_entries,
        "read_journal_seconds": read - start,
        "ledger_seconds": replayed - read,
        "buffer_seconds": opened - begin,
        "open_seconds": replayed - start + opened - begin,
        "first_take_seconds": taken - again,
        "resident_bytes_before": before,
        "resident_bytes_added": after - before,
        "resident_bytes_peak": _status("VmHWM"),
    }


def _config() -> AsyncConfig:
    return AsyncConfig(
        async_buffer_size=0,
        update_weights_interval=FOR_EVER,
        buffer_durability="process",
        buffer_max_bytes=FOR_EVER,
    )


def _clock(num_groups: int) -> RolloutClock:
    return RolloutClock(
        rollout_batch_size=num_groups,
        async_buffer_size=0,
        update_weights_interval=FOR_EVER,
        num_rollout=FOR_EVER,
    )


def _resident_bytes() -> int:
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name + ":"))) * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Open a buffer and take its first group.")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="what a killed run left")
    print(json.dumps(open_and_take(parser.parse_args().directory)))
