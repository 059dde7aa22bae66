"""`python -m pipeline buffer RUN_DIR audit`: a run's decisions and batches, made again from its
journal and compared with what was done then."""

from __future__ import annotations

from collections.abc import Iterator

from buffers.audit import DecisionCheck
from buffers.dump import KeptRun
from buffers.journal import FILE_NAME, read_journal
from configs.command_line.loader import load_config
from configs.schema import flat_args
from pipeline.core.errors import DataError
from pipeline.run.digest import batch_digest
from pipeline.run.record_file import current_records, read_records
from pipeline.run.rundir import RunDir
from pipeline.wiring.batcher import Batcher
from pipeline.wiring.context import make_clock
from pipeline.wiring.foreign_flags import FAMILIES


def audit_lines(run: RunDir) -> Iterator[str]:
    """Yields what was compared, in words.

    Raises DataError, after everything was looked at, when something came out otherwise."""
    config = load_config(["--config", str(run.config)], families=FAMILIES)
    entries, _ = read_journal(run.buffer / FILE_NAME)
    life = next((n for n, entry in enumerate(entries) if entry["t"] == "restore"), len(entries))
    check = DecisionCheck(config.async_, make_clock(config), seed=config.run.seed)
    check.run(entries[:life])
    end = " (up to the first restart)" if life < len(entries) else ""
    yield (
        f"decisions{end}: {check.num_admitted} admissions and {check.num_taken} takes made again,"
        f" {len(check.differences)} differ"
    )
    wrong = list(check.differences)
    known = {
        r["rollout_id"]: r["batch_digest"]
        for r in current_records(read_records(run.metrics))
        if r["kind"] == "train"
    }
    if config.async_.keep_trajectories:
        kept, make, equal = KeptRun(run.buffer), Batcher(config, flat_args(config), None), 0
        for rollout_id, digest in known.items():
            take = kept.read(rollout_id)
            if batch_digest(make(rollout_id, take.policy_version, take.groups)) == digest:
                equal += 1
            else:
                wrong.append(f"rollout {rollout_id}: its batch is not the one that was trained on")
        yield f"batches: {equal} of {len(known)} made again bit by bit"
    else:
        yield "batches: their groups were not kept (--keep-trajectories keeps them)"
    if wrong:
        raise DataError(
            "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        )
