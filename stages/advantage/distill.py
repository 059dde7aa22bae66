"""On-policy distillation: the teacher's log-probs of every response go with it to the learner."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pipeline.core.errors import DataError
from pipeline.core.types import Sample, TrainSample


def with_teacher(rows: Sequence[TrainSample], samples: Sequence[Sample]) -> list[TrainSample]:
    """Rows with their samples' `teacher_log_probs` [R] (temperature 1), `samples` in their order.

    What they are compared with, the policy at consumption, is known in the learner alone
    (stages.learn.kl.reverse_kl_to_teacher). Raises DataError for a sample that is trained on
    without them, or with another number of them than of response tokens."""
    out = []
    for row, sample in zip(rows, samples, strict=True):
        teacher = sample.teacher_log_probs
        if not row.loss_mask.any():
            out.append(row)
        elif teacher is None or len(teacher) != row.response_length:
            found = "no" if teacher is None else len(teacher)
            raise DataError(
                f"sample {sample.index}: {found} teacher log-probs for a response of"
                f" {row.response_length} tokens; --use-opd needs one each"
            )
        else:
            own = np.asarray(teacher, dtype=np.float32)
            out.append(dataclasses.replace(row, teacher_log_probs=own))
    return out
