"""A log of one's own: how long the right answers are, of every rollout and every evaluation.

--custom-rollout-log-function-path examples/hooks/log_functions.py
--custom-eval-rollout-log-function-path examples/hooks/log_functions.py
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from slipstream import Sample

logger = logging.getLogger("slipstream.hooks")


def log_rollout_data(
    rollout_id: int,
    args: Any,
    samples: Sequence[Sample],
    rollout_extra_metrics: Mapping[str, Any],
    rollout_time: float,
) -> bool:
    """`rollout_extra_metrics`: the rollout's record in metrics.jsonl."""
    logger.info(
        "rollout %d: right answers have %.1f tokens, %.1f s",
        rollout_id,
        _mean_length(args, samples),
        rollout_time,
    )
    return False


def log_eval_rollout_data(
    rollout_id: int, args: Any, data: Mapping[str, Any], extra_metrics: Mapping[str, Any]
) -> bool:
    """`data`: of every data set, "rewards", "truncated" and "samples"."""
    for name, seen in data.items():
        logger.info(
            "evaluation %s after %d rollouts: right answers have %.1f tokens",
            name,
            rollout_id,
            _mean_length(args, seen["samples"]),
        )
    return False


def _mean_length(args: Any, samples: Sequence[Sample]) -> float:
    right = [s.response_length for s in samples if s.reward_value(args.reward_key) > 0]
    return sum(right) / len(right) if right else 0.0
