"""Records on disk: strict JSON lines that survive a torn write and a resume."""

from __future__ import annotations

import enum
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.format import counted

logger = logging.getLogger(__name__)
Record = dict[str, Any]


def jsonable(record: Mapping[str, Any]) -> Record:
    """The record as strict JSON can hold it: NaN and infinities become null and are named in
    `non_finite`."""
    bad: list[str] = []
    out = {str(k): _plain(v, str(k), bad) for k, v in record.items()}
    if bad:
        out["non_finite"] = bad
    return out


def _plain(value: Any, name: str, bad: list[str]) -> Any:
    if isinstance(value, enum.Enum):
        return _plain(value.value, name, bad)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            bad.append(f"{name}={value}")
            return None
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{name}.{k}", bad) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [_plain(v, f"{name}[{i}]", bad) for i, v in enumerate(value)]
    return str(value)  # paths and the like; a record must never stop a run


def line_of(record: Mapping[str, Any]) -> str:
    """One line of metrics.jsonl, with its newline."""
    return json.dumps(jsonable(record), allow_nan=False, ensure_ascii=False) + "\n"


def read_records(path: Path) -> list[Record]:
    """Every whole record, in file order.

    A missing file is empty; a line that is no JSON object is skipped with a warning.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    records, torn = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        record = _parse(line)
        if record is None:
            torn.append(number)
        else:
            records.append(record)
    if torn:
        logger.warning(
            "%s: %s skipped, not a JSON object (torn write?): line %s",
            path,
            counted(len(torn), "line"),
            ", ".join(map(str, torn[:3])) + (", ..." if len(torn) > 3 else ""),
        )
    return records


def _parse(line: str) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "kind" in value else None


def is_rolled_back(record: Mapping[str, Any], num_trained: int) -> bool:
    """Does the record tell of what a run that goes on from `num_trained` trained rollouts has not
    done (yet)?

    train and push rows carry the rollout's id, eval rows the number of rollouts trained before
    them."""
    rollout = record.get("rollout_id")
    if not isinstance(rollout, int):
        return False
    return rollout > num_trained if record["kind"] == "eval" else rollout >= num_trained


def current_records(records: Iterable[Mapping[str, Any]]) -> list[Record]:
    """What holds now: every train and push row at most once per rollout, the last one said.

    Rollouts are trained in order, so a train row that is not beyond its predecessors means that the
    run went back to a checkpoint: it voids what was said of its own and later rollouts."""
    kept: list[Record] = []
    next_rollout = 0
    for record in records:
        rollout = record.get("rollout_id")
        if record.get("kind") == "train" and isinstance(rollout, int):
            if rollout < next_rollout:
                kept = [r for r in kept if not is_rolled_back(r, rollout)]
            next_rollout = rollout + 1
        kept.append(dict(record))
    return kept


def roll_back(path: Path, aside: Path, num_trained: int) -> int:
    """Before a resume: move the rows of rollouts from `num_trained` on (and a torn last line) from
    `path` to `aside`.

    Returns how many rows were moved. `path` is replaced in one step, so a kill in between loses
    nothing."""
    if not path.exists():
        return 0
    lines = [
        line
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n")
        if line.strip()
    ]
    keep: list[str] = []
    move: list[str] = []
    for line in lines:
        record = _parse(line)
        (move if record is None or is_rolled_back(record, num_trained) else keep).append(line)
    if move:
        with aside.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in move)
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in keep)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    return len(move)
