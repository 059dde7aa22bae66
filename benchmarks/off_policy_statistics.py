"""The arithmetic of the off-policy experiment: what is best, how far apart, how sure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# Two-sided 95 % quantiles of Student's t by degrees of freedom (Student 1908; any table).
STUDENT_T = {
    **dict(enumerate((12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262), start=1)),
    **dict(enumerate((2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101), start=10)),
    19: 2.093,
}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval, by Student's t: [seeds] -> (mean,
    half). The half width of a single value is infinite."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    quantile = STUDENT_T.get(len(values) - 1, 1.960)
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def paired(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Differences of `late`, seed by seed, over the seeds that both have."""
    other = {r["seed"]: r["late"] for r in theirs}
    return [r["late"] - other[r["seed"]] for r in ours if r["seed"] in other]


def best_rate(by_rate: Mapping[float, Sequence[Mapping[str, Any]]]) -> float:
    """The learning rate whose runs end highest in the mean; the smaller of equals, for it is the
    safer one. Raises ValueError where nothing was run."""
    means = {lr: statistics.fmean(r["late"] for r in rows) for lr, rows in by_rate.items() if rows}
    if not means:
        raise ValueError("no run of any learning rate is done; run the choosing first")
    return max(sorted(means), key=lambda lr: means[lr])


def samples_to(reward: float, row: Mapping[str, Any], samples_a_rollout: int) -> int | None:
    """Samples trained when the held-out reward first reached `reward`; None: never."""
    reached = next((r for r, value in row["held_out"] if value >= reward), None)
    return None if reached is None else reached * samples_a_rollout
