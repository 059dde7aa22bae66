"""Histograms of equal bins, as plain numbers: a form that a record can hold and every tracker can
show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

# Of the log of the importance ratio between old and rollout policy, in tokens: a learner names bin
# i's count so, i = 0 .. NUM_RATIO_BINS - 1, in its metrics. The outermost hold what is beyond.
RATIO_BIN = "rollout_log_ratio_bin/"
RATIO_WIDTH = 0.02  # one bin is centred on 0
NUM_RATIO_BINS = 51
_MAX_BINS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Bin i covers [low + i * width, low + (i + 1) * width)."""

    low: float
    width: float
    counts: tuple[float, ...]

    @property
    def edges(self) -> list[float]:
        """The bins' edges, one more than there are counts."""
        return [self.low + i * self.width for i in range(len(self.counts) + 1)]

    def to_dict(self) -> dict[str, object]:
        return {"low": self.low, "width": self.width, "counts": list(self.counts)}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Histogram:
        return cls(low=data["low"], width=data["width"], counts=tuple(data["counts"]))  # type: ignore[arg-type]

    @classmethod
    def of_integers(cls, counts: Mapping[int, int]) -> Histogram | None:
        """The histogram of a mapping from value to count: one bin for each value where that makes
        few bins, else for a round number of values. None where nothing was counted."""
        if not counts:
            return None
        low, high = min(counts), max(counts)
        width = 1
        while (high - low) // width >= _MAX_BINS:
            width *= 2
        first = low // width * width
        bins = np.zeros((high - first) // width + 1, dtype=np.int64)
        for value, count in counts.items():
            bins[(value - first) // width] += count
        # a bin is drawn around its integers, not from the first to the next one's
        return cls(low=first - 0.5, width=width, counts=tuple(bins.tolist()))

    @classmethod
    def of_log_ratio(cls, metrics: Mapping[str, float]) -> Histogram | None:
        """The histogram in a learner's metrics; None where it reported no bins."""
        if RATIO_BIN + "0" not in metrics:
            return None
        counts = tuple(metrics[f"{RATIO_BIN}{i}"] for i in range(NUM_RATIO_BINS))
        return cls(low=-RATIO_WIDTH * NUM_RATIO_BINS / 2, width=RATIO_WIDTH, counts=counts)


def ratio_bins(counts: Iterable[float]) -> dict[str, float]:
    """The metrics that report these counts, the lowest log-ratios first."""
    return {f"{RATIO_BIN}{i}": float(count) for i, count in enumerate(counts)}
