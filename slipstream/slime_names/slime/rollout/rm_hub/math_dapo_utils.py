"""DAPO's rule."""

from __future__ import annotations

from typing import Any

from pipeline.core.slime_names import refuse
from stages.reward.scorers.boxed import in_box
from stages.reward.scorers.dapo import dapo

__getattr__ = refuse("slime.rollout.rm_hub.math_dapo_utils")
_LAST_CHARACTERS = 100


def compute_score(
    solution_str: str,
    ground_truth: str,
    strict_box_verify: bool = False,
    pause_tokens_index: list[int] | None = None,
) -> dict[str, Any]:
    r"""`score` 1.0 or -1.0, `acc`, `pred`: of `Answer: ...`, or, strictly, of the last \boxed of
    the last 100 characters, which must be the very text."""
    if not strict_box_verify:
        return dapo(solution_str, ground_truth, {})
    said = in_box(solution_str[-_LAST_CHARACTERS:])
    right = said == ground_truth
    return {"score": 1.0 if right else -1.0, "acc": right, "pred": said}
