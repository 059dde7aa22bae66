"""How much of a trajectory each of its samples is: fan-out cuts a trajectory into several."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

from pipeline.core.types import TrainSample


def number(names: Sequence[Hashable]) -> list[int]:
    """0, 1, ... in order of appearance; equal names have equal numbers."""
    found: dict[Hashable, int] = {}
    return [found.setdefault(name, len(found)) for name in names]


def share_trajectories(rows: Sequence[TrainSample]) -> list[TrainSample]:
    """The same rows, weighing n_i / sum of n_j over the samples of their trajectory, n the trained
    tokens; equally much where it has none.

    The mean over trajectories of each one's mean over its tokens is then the same wherever it was
    cut: the gradient of a trajectory knows no cuts (DAPO, arXiv:2503.14476, eq. 8, and GRPO,
    arXiv:2402.03300, eq. 3, sum over a trajectory's tokens; slime's rollout_mask_sums)."""
    tokens: dict[int, int] = {}
    samples: dict[int, int] = {}
    for row in rows:
        tokens[row.trajectory] = tokens.get(row.trajectory, 0) + int(row.loss_mask.sum())
        samples[row.trajectory] = samples.get(row.trajectory, 0) + 1
    return [dataclasses.replace(row, weight=_weight(row, tokens, samples)) for row in rows]


def _weight(row: TrainSample, tokens: dict[int, int], samples: dict[int, int]) -> float:
    if row.trajectory < 0:  # it is all of its own
        return 1.0
    total = tokens[row.trajectory]
    return int(row.loss_mask.sum()) / total if total else 1.0 / samples[row.trajectory]
