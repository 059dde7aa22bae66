"""`python -m pipeline buffer RUN_DIR export FILE`: one row for every sample, with the rollout that
first trained on it and the advantages that it had there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from buffers.dump import KeptRun
from buffers.ledger import Account, Ledger
from buffers.segments import scan
from configs.command_line.loader import parse_config
from configs.schema import flat_args
from pipeline.cli.inspection import ledger_of, segments_of
from pipeline.core.errors import DataError, SlipstreamError
from pipeline.core.types import TrainSample
from pipeline.run.rundir import RunDir
from pipeline.wiring.batcher import Batcher
from pipeline.wiring.foreign_flags import FAMILIES

NOT_TRAINED = "no rollout has trained on them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Of one group: its samples as the learner took them, or why they cannot be made again."""

    samples: tuple[TrainSample, ...] = ()
    why_not: str = ""


def export_lines(run: RunDir, target: Path) -> Iterator[str]:
    """Writes all groups in the segments to `target` (.parquet or .jsonl); says what was written.

    Columns beside the schema's: `rollout_id`, the first rollout that trained on the sample (its own
    attribute of that name is the column `sample_rollout_id`); `advantages`, one for every response
    token, as they were made when that rollout was taken; `advantage`, their mean over the trained
    tokens. What the learner takes off (--kl-coef) is in neither."""
    ledger, _ = ledger_of(run)
    found = [(path, at, batch) for path in segments_of(run) for at, batch in scan(path)]
    if not found:
        raise DataError(
            f"{run.buffer} holds no groups: trained ones are removed at the next checkpoint (see"
            " --keep-last-rollouts, --keep-trajectories)"
        )
    accounts = [_account_at(ledger, path, at, batch) for path, at, batch in found]
    rows = _rows(run, ledger, {_first_rollout(a) for a in accounts if a is not None})
    absent: Counter[str] = Counter()
    columns: dict[str, list] = {"rollout_id": [], "advantage": [], "advantages": []}
    for account, (_, _, batch) in zip(accounts, found, strict=True):
        rollout_id = None if account is None else _first_rollout(account)
        columns["rollout_id"] += [rollout_id] * len(batch)
        known = Rows(why_not=NOT_TRAINED)
        if account is not None and rollout_id is not None:
            known = rows[rollout_id, account.group_index]
        if known.why_not:
            absent[known.why_not] += len(batch)
        means, tokens = _advantages(known, len(batch))
        columns["advantage"] += means
        columns["advantages"] += tokens
    table = pa.Table.from_batches([batch for _, _, batch in found])
    # slime's attribute of a sample is another thing than the rollout that trained on it
    table = table.rename_columns(
        ["sample_rollout_id" if name == "rollout_id" else name for name in table.column_names]
    )
    types = (pa.int64(), pa.float64(), pa.large_list(pa.float32()))
    for (name, values), dtype in zip(columns.items(), types, strict=True):
        table = table.append_column(name, pa.array(values, dtype))
    _write(table, target)
    yield f"{len(table)} samples written to {target}"
    for why, count in absent.items():
        yield f"advantages of {count} of them are empty: {why}"


def _account_at(ledger: Ledger, path: Path, offset: int, batch: pa.RecordBatch) -> Account | None:
    """The account that these bytes belong to; None for what a crash left beside it."""
    account = ledger.accounts.get(batch.column("group_index")[0].as_py())
    if account is None or account.place is None:
        return None
    at = account.place
    return account if (f"segment-{at.segment:06d}", at.offset) == (path.stem, offset) else None


def _first_rollout(account: Account) -> int | None:
    return account.consumed[0][0] if account.consumed else None


def _rows(run: RunDir, ledger: Ledger, rollouts: set[int | None]) -> dict[tuple[int, int], Rows]:
    """By (rollout, group)."""
    wanted = sorted(r for r in rollouts if r is not None)
    batcher, why_not = _batcher(run)
    out: dict[tuple[int, int], Rows] = {}
    for rollout_id in wanted:
        groups = ledger.takes[rollout_id].groups
        out.update(((rollout_id, g), Rows(why_not=why_not)) for g in groups)
        if batcher is not None:
            out.update(_rows_of(batcher, run, rollout_id, groups))
    return out


def _batcher(run: RunDir) -> tuple[Batcher | None, str]:
    """(what made the run's batches, or why that cannot make them again)."""
    try:
        config, _ = parse_config(["--config", str(run.config)], families=FAMILIES)
        if config.algorithm.advantage_estimator == "ppo":
            return None, "with --advantage-estimator ppo the critic makes them, in the learner"
        if config.algorithm.custom_convert_samples_to_train_data_path is not None:
            return None, (
                "--custom-convert-samples-to-train-data-path makes rows that need not be one a"
                " sample"
            )
        return Batcher(config, flat_args(config), None), ""
    except (SlipstreamError, OSError) as e:
        return None, str(e)


def _rows_of(
    batcher: Batcher, run: RunDir, rollout_id: int, groups: Sequence[int]
) -> dict[tuple[int, int], Rows]:
    """A group's advantages may depend on the rollout's other groups, so all of them are needed."""
    try:
        take = KeptRun(run.buffer).read(rollout_id)
        ordered = batcher.ordered(take.groups)
        rows = iter(batcher.rows(rollout_id, take.policy_version, ordered))
    except SlipstreamError as e:
        return {(rollout_id, g): Rows(why_not=str(e)) for g in groups}
    return {
        (rollout_id, group.group_index): Rows(samples=tuple(next(rows) for _ in group.samples))
        for group in ordered
    }


def _advantages(rows: Rows, num_samples: int) -> tuple[list[float | None], list[np.ndarray | None]]:
    """(means over trained tokens, those of every token), a sample each."""
    if rows.why_not:
        return [None] * num_samples, [None] * num_samples
    means = [
        float(s.advantages[s.loss_mask.astype(bool)].mean(dtype=np.float64))
        if s.loss_mask.any()
        else None
        for s in rows.samples
    ]
    return means, [s.advantages for s in rows.samples]


def _write(table: pa.Table, target: Path) -> None:
    match target.suffix:
        case ".parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(table, target)
        case ".jsonl":
            with target.open("w", encoding="utf-8") as f:
                for row in table.to_pylist():
                    f.write(json.dumps(row) + "\n")
        case other:
            raise DataError(
                f"export to {target}: {other or 'no suffix'} is not known; expected .parquet or"
                " .jsonl"
            )
