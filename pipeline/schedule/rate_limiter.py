"""How far two sides may run apart, one that inserts and one that samples. Pure: counts go in, yes
or no comes out.

Source: the rate limiter of Reverb, Cassirer et al. 2021, arXiv:2102.04736, section 3.3. One rule
serves both ends of the buffer: the clock asks `can_insert` before a group is admitted, the buffer
asks `can_sample` before a rollout is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from pipeline.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimiter:
    """Keeps diff = inserts * samples_per_insert - samples within [min_diff, max_diff], counts since
    the beginning.

    Inserting waits at the upper end (unless fewer than `min_size_to_sample` items are there),
    sampling at the lower end and while there are fewer than `min_size_to_sample`."""

    samples_per_insert: float
    min_size_to_sample: int
    min_diff: float
    max_diff: float
    batch: int = 1  # samples asked for at once

    def __post_init__(self) -> None:
        """Raises ConfigError where both sides could end up waiting for each other."""
        s = self.samples_per_insert
        if not (math.isfinite(s) and s > 0):
            raise ConfigError(f"rate limiter: samples per insert {s:g}, expected a number above 0")
        if self.min_size_to_sample < 1 or self.batch < 1:
            raise ConfigError(
                f"rate limiter: min size {self.min_size_to_sample} and batch {self.batch} must be"
                " at least 1"
            )
        if self.max_diff - self.min_diff < self.width_needed:
            raise ConfigError(
                f"rate limiter: [{self.min_diff:g}, {self.max_diff:g}] is too narrow for batches of"
                f" {self.batch} at {s:g} samples an insert: sampling and inserting would wait for"
                f" each other. Widen it to {self.width_needed:g} (a larger error buffer)"
            )

    @property
    def width_needed(self) -> float:
        """While sampling waits, diff < min_diff + batch; an insert must fit then. Where diff moves
        in steps of samples_per_insert that a batch is a multiple of (from min_diff 0), it is at
        most min_diff + batch - samples_per_insert."""
        s = self.samples_per_insert
        in_step = (self.batch / s).is_integer() and (self.min_diff / s).is_integer()
        return self.batch if in_step else self.batch + s

    @classmethod
    def rollouts(
        cls,
        *,
        fresh: int,
        samples_per_insert: float = 1.0,
        buffer_size: int,
        min_size_to_sample: int | None = None,
    ) -> Self:
        """The limiter for rollouts of fresh * samples_per_insert groups, `fresh` of which are new.

        `buffer_size` (K) is the error buffer, in rollouts."""
        batch = round(fresh * samples_per_insert)
        return cls(
            samples_per_insert=samples_per_insert,
            min_size_to_sample=fresh if min_size_to_sample is None else min_size_to_sample,
            min_diff=0.0,
            max_diff=float((buffer_size + 1) * batch),
            batch=batch,
        )

    def can_insert(self, *, inserts: int, samples: int) -> bool:
        """May one more be inserted? `inserts`: how many were so far, without those that were given
        back; `samples`: how many were sampled so far."""
        return (
            inserts + 1 <= self.min_size_to_sample
            or (inserts + 1) * self.samples_per_insert - samples <= self.max_diff
        )

    def can_sample(self, *, inserts: int, samples: int, size: int) -> bool:
        """May a batch be sampled? `size`: how many items are there now."""
        return (
            size >= self.min_size_to_sample
            and inserts * self.samples_per_insert - samples - self.batch >= self.min_diff
        )
