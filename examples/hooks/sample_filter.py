"""No loss for responses that ran into the length limit: they were not wrong, only long. They still
count in their group's mean.

--rollout-sample-filter-path examples/hooks/sample_filter.py
"""

from __future__ import annotations

from typing import Any

from slipstream import Sample


def filter_samples(args: Any, groups: list[list[Sample]]) -> None:
    for group in groups:
        cut = [sample for sample in group if sample.status is Sample.Status.TRUNCATED]
        if len(cut) < len(group):  # an optimizer step needs something to train on
            for sample in cut:
                sample.remove_sample = True
