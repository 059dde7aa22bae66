"""Figures of an evaluation with their 95% confidence intervals.

Samples of one prompt are no independent observations: what is drawn at random is prompts, and the
standard error is the clustered one (Miller 2024, arXiv 2411.00640). Where all values lie between 0
and 1 the interval is Wilson's (1927), of as many independent observations as that standard error is
worth (Korn and Graubard 1998): unlike mean plus minus two standard errors it stays within 0 and 1,
and does not shrink to a point where every answer is wrong, or every answer right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from pipeline.core.types import Estimate

_LEVEL = 0.975  # two-sided 95%
_Z = NormalDist().inv_cdf(_LEVEL)


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The probability that k samples drawn of these, without replacement, hold a right one: the
    unbiased estimate of pass@k (Chen et al. 2021, arXiv 2107.03374, section 2.1). 1 <= k <=
    num_samples."""
    assert 1 <= k <= num_samples, f"pass@{k} of {num_samples} samples"
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def estimate(clusters: Sequence[Sequence[float]]) -> Estimate | None:
    """The mean of all values, one cluster a prompt, with its interval; the interval is None of a
    single prompt. None where there is no value."""
    clusters = [cluster for cluster in clusters if cluster]
    total = sum(map(len, clusters))
    if not total:
        return None
    mean = math.fsum(value for cluster in clusters for value in cluster) / total
    if len(clusters) < 2:
        return Estimate(mean=mean, low=None, high=None)
    error = _clustered_error(clusters, mean, total)
    t = student_quantile(len(clusters) - 1)
    if any(not 0 <= value <= 1 for cluster in clusters for value in cluster):
        return Estimate(mean=mean, low=mean - t * error, high=mean + t * error)
    low, high = _wilson(mean, _worth(mean, error, t, len(clusters)))
    return Estimate(mean=mean, low=low, high=high)


def student_quantile(degrees: int) -> float:
    """Of Student's t for the 95% interval: exact for 1 and 2 degrees of freedom, else by the series
    of Abramowitz and Stegun 26.7.5."""
    if degrees == 1:
        return math.tan(math.pi * (_LEVEL - 0.5))
    if degrees == 2:
        return (2 * _LEVEL - 1) / math.sqrt(2 * _LEVEL * (1 - _LEVEL))
    z, v = _Z, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def _clustered_error(clusters: Sequence[Sequence[float]], mean: float, total: int) -> float:
    """The standard error of the mean of clusters that need not be of one size."""
    residuals = math.fsum((math.fsum(c) - len(c) * mean) ** 2 for c in clusters)
    count = len(clusters)
    return math.sqrt(count / (count - 1) * residuals) / total


def _worth(mean: float, error: float, t: float, num_clusters: int) -> float:
    """How many independent draws of 0 or 1 with this mean have such a standard error."""
    if error < 1e-9:  # prompts have not varied: nothing says that they could not
        return num_clusters
    return mean * (1 - mean) / (error * error) * (_Z / t) ** 2  # the error is an estimate, too


def _wilson(mean: float, count: float) -> tuple[float, float]:
    weight = _Z * _Z / count
    middle = (mean + weight / 2) / (1 + weight)
    half = math.sqrt(mean * (1 - mean) * weight + weight * weight / 4) / (1 + weight)
    return max(0.0, min(mean, middle - half)), min(1.0, max(mean, middle + half))
