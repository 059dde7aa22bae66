"""On-policy distillation: the teacher's opinion of every sampled token, as an advantage."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pipeline.core.errors import DataError
from pipeline.core.types import Sample, TrainSample


def apply_opd(
    rows: Sequence[TrainSample], samples: Sequence[Sample], coef: float
) -> list[TrainSample]:
    """Rows whose advantage A_t has become A_t - coef * (log pi_rollout(t) - log pi_teacher(t)) on
    trained tokens.

    The mean of what is taken off, over tokens that the policy sampled, is the reverse KL(policy ||
    teacher) of each step, so its policy gradient is descended. `samples` in the rows' order, with
    `teacher_log_probs` [R] (temperature 1) of each that is trained on. Source: Agarwal et al. 2024,
    On-Policy Distillation of Language Models, arXiv:2306.13649 (reverse KL on the student's own
    samples); as a per-token advantage Lu et al. 2025, On-Policy Distillation,
    thinkingmachines.ai/blog/on-policy-distillation. Raises DataError for a sample without the
    teacher's log-probs, or with another number of them than of response tokens."""
    out = []
    for row, sample in zip(rows, samples, strict=True):
        if not row.loss_mask.any():
            out.append(row)
            continue
        teacher = sample.teacher_log_probs
        if teacher is None or len(teacher) != row.response_length:
            found = "no" if teacher is None else len(teacher)
            raise DataError(
                f"sample {sample.index}: {found} teacher log-probs for a response of"
                f" {row.response_length} tokens; --use-opd needs one each"
            )
        gap = row.rollout_log_probs - np.asarray(teacher, dtype=np.float32)
        out.append(
            dataclasses.replace(
                row, advantages=row.advantages - np.float32(coef) * gap * (row.loss_mask > 0)
            )
        )
    return out
