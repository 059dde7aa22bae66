"""The teacher's log-probs go with every trained sample; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.core.types import Sample, TrainSample
from stages.advantage import with_teacher


def row(mask: list[int]) -> TrainSample:
    n = len(mask)
    return TrainSample(
        index=0,
        group_index=0,
        tokens=np.arange(n + 1),
        response_length=n,
        loss_mask=np.array(mask, np.uint8),
        rollout_log_probs=np.zeros(n, np.float32),
        advantages=np.full(n, 0.5, np.float32),
        reward=0.0,
        staleness=0,
    )


def test_they_go_along_and_change_no_advantage() -> None:
    (out,) = with_teacher([row([1, 0, 1])], [Sample(teacher_log_probs=[-1.0, -2.0, -3.0])])
    assert out.teacher_log_probs is not None
    assert out.teacher_log_probs.tolist() == [-1.0, -2.0, -3.0]
    assert out.teacher_log_probs.dtype == np.float32
    assert out.advantages.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("teacher", "words"),
    [(None, "no teacher log-probs"), ([-1.0], "1 teacher log-probs for a response of 2")],
)
def test_missing_log_probs_are_refused(teacher: list[float] | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        with_teacher([row([1, 1])], [Sample(index=3, teacher_log_probs=teacher)])


def test_an_untrained_sample_needs_no_teacher() -> None:
    untrained = row([0])
    assert with_teacher([untrained], [Sample()]) == [untrained]
