"""The newest groups first; groups that were cut off at the length limit as a whole are taken out,
and replaced by new ones.

--async-buffer-size 2 --buffer-filter-path examples/hooks/buffer_filter.py
"""

from __future__ import annotations

from typing import Any

from slipstream import Sample


def buffer_filter(
    args: Any, rollout_id: int, buffer: list[list[Sample]], num_samples: int
) -> list[list[Sample]]:
    buffer[:] = [
        group
        for group in buffer
        if any(sample.status is not Sample.Status.TRUNCATED for sample in group)
    ]
    return sorted(buffer, key=_oldest_version, reverse=True)[:num_samples]


def _oldest_version(group: list[Sample]) -> int:
    return min((v for sample in group if (v := sample.oldest_version()) is not None), default=-1)
