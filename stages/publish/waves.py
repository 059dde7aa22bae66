"""Which engines are given their weights at the same time. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def split_waves(endpoints: Sequence[str], fraction: float) -> list[tuple[str, ...]]:
    """Consecutive waves of at most about `fraction` (0 < fraction <= 1) of the engines, whose sizes
    differ by one at most. Below 1 there are two waves at least where there are two engines, so that
    a part of the pool always decodes; how many there are does not grow with the pool."""
    if not endpoints:
        return []
    wanted = math.ceil(1 / fraction - 1e-9)  # 1 / (1/3) is a little above 3
    count = min(len(endpoints), wanted)
    edges = [round(i * len(endpoints) / count) for i in range(count + 1)]
    return [tuple(endpoints[a:b]) for a, b in itertools.pairwise(edges)]
