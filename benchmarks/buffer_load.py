"""What every contender of benchmarks/buffer.py stores and gives back, and how its bytes are
counted. No third party but numpy."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.core.types import Sample, Status, VersionSpan

COLUMNS = ("tokens", "loss_mask", "rollout_log_probs")
BYTES_FORMULA = (
    "samples x (response tokens x (8 tokens + 1 loss_mask + 4 rollout_log_probs) + 24 for one"
    " version span)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    num_samples: int = 256  # of one round
    group_size: int = 8
    response_tokens: int = 1024  # the prompt is empty: tokens has as many
    num_singles: int = 256  # samples of one round that go one at a time

    @property
    def sample_bytes(self) -> int:
        return self.response_tokens * (8 + 1 + 4) + 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of one round, all its samples together."""

    put: float
    get: float


def make_groups(load: Load, *, single: bool, lists: bool = False) -> list[tuple[Sample, ...]]:
    """One round's samples.

    `lists`: Python lists, as an engine's answer is decoded, instead of arrays in the columns' own
    dtypes.
    """
    size, count = (1, load.num_singles) if single else (load.group_size, load.num_samples)
    random = np.random.default_rng(0)
    samples = [_sample(i, load.response_tokens, random, lists) for i in range(count)]
    return [tuple(samples[i : i + size]) for i in range(0, count, size)]


def _sample(index: int, n: int, random: np.random.Generator, lists: bool) -> Sample:
    tokens: Any = random.integers(0, 150_000, n, np.int64)
    mask: Any = np.ones(n, np.uint8)
    log_probs: Any = random.normal(-1, 1, n).astype(np.float32)
    if lists:
        tokens, mask, log_probs = tokens.tolist(), mask.tolist(), log_probs.tolist()
    return Sample(
        index=index,
        tokens=tokens,
        response_length=n,
        loss_mask=mask,
        rollout_log_probs=log_probs,
        weight_versions=[VersionSpan(0, 0, n)],
        reward=1.0,
        status=Status.COMPLETED,
    )


def check_same(put: Sequence[Sample], got: Sequence[Sample]) -> None:
    """A contender that does not give back what it was given has no figure: raises RuntimeError."""
    same = len(put) == len(got) and all(
        all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)
        and a.weight_versions == b.weight_versions
        for a, b in zip(put, got, strict=False)
    )
    if not same:
        raise RuntimeError(
            f"what was got is not what was put: {len(put)} samples put, {len(got)} got"
        )


def figures(
    rounds: Sequence[Times], num_samples: int, sample_bytes: int
) -> dict[str, dict[str, float]]:
    """{"put" | "get": samples a second and GB (1e9 bytes) a second, of the best and of the median
    round}."""
    return {
        what: _rates([getattr(r, what) for r in rounds], num_samples, sample_bytes)
        for what in ("put", "get")
    }


def _rates(seconds: Sequence[float], num_samples: int, sample_bytes: int) -> dict[str, float]:
    best, median = num_samples / min(seconds), num_samples / statistics.median(seconds)
    return {
        "samples_per_second": median,
        "samples_per_second_best": best,
        "gb_per_second": median * sample_bytes / 1e9,
        "gb_per_second_best": best * sample_bytes / 1e9,
    }


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the quotients of the same rounds, which ran one after the other on the same
    machine."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
