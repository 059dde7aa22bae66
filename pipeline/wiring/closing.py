"""What a run writes about itself at its end, and what it keeps of a refused step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.types import TrainBatch
from pipeline.telemetry import open_telemetry
from pipeline.wiring.context import RunContext

logger = logging.getLogger(__name__)


def telemetry_of(site: RunContext) -> tuple[Any, Callable[[float, bool], None]]:
    from pipeline.report import closing_lines, write_report, write_summary

    telemetry = open_telemetry(
        site.run_dir,
        site.config,
        resumed_at=site.clock.num_trained if site.resumed.home is not None else None,
    )

    def finish(wall_seconds: float, interrupted: bool) -> None:
        telemetry.close()
        summary = write_summary(site.run_dir.path, wall_seconds=wall_seconds)
        try:
            write_report(site.run_dir.path, wall_seconds=wall_seconds)
        except Exception:  # a picture of the run must not turn a good run into a failed one
            logger.exception(
                "the report was not written; `python -m pipeline report %s` tries again",
                site.run_dir.path,
            )
        for line in closing_lines(site.run_dir.path, summary):
            print(line, flush=True)

    return telemetry, finish


def save_batch(batch: TrainBatch, folder: Path) -> Path:
    """Writes the batch of a refused step as one .npz (no pickle): arrays named s<step>_<field>,
    samples one after the other. Returns its path."""
    arrays: dict[str, np.ndarray] = {
        "rollout_id": np.asarray(batch.rollout_id),
        "policy_version": np.asarray(batch.policy_version),
    }
    for number, step in enumerate(batch.steps):
        samples = [s for rank in step.per_rank for micro_batch in rank for s in micro_batch]
        for name in (
            "index",
            "group_index",
            "response_length",
            "reward",
            "staleness",
            "num_tokens",
            "weight",
        ):
            arrays[f"s{number}_{name}"] = np.asarray([getattr(s, name) for s in samples])
        for name in ("tokens", "loss_mask", "rollout_log_probs", "advantages"):
            arrays[f"s{number}_{name}"] = np.concatenate([getattr(s, name) for s in samples])
    path = folder / f"refused-batch-{batch.rollout_id:06d}.npz"
    np.savez(path, allow_pickle=False, **arrays)
    return path
