"""A look at everything a rollout cost, the groups that a dynamic filter dropped included.

--rollout-all-samples-process-path examples/hooks/all_samples.py
"""

from __future__ import annotations

import logging
from typing import Any

from slipstream import Sample

# below "slipstream": into run.log and onto the terminal, from INFO on
logger = logging.getLogger("slipstream.hooks")


def process_all_samples(args: Any, all_groups: list[list[Sample]], data_source: Any) -> None:
    """`all_groups`: those that are trained on now, then those dropped since the last rollout."""
    samples = [sample for group in all_groups for sample in group]
    tokens = sum(sample.response_length for sample in samples)
    logger.info(
        "this rollout took %d groups, %d samples, %d response tokens",
        len(all_groups),
        len(samples),
        tokens,
    )
