"""The teacher's opinion as an advantage, against a loop; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import DataError
from pipeline.core.types import Sample, TrainSample
from stages.advantage import apply_opd


def row(log_probs: list[float], mask: list[int], advantages: list[float]) -> TrainSample:
    n = len(log_probs)
    return TrainSample(
        index=0,
        group_index=0,
        tokens=np.arange(n + 1),
        response_length=n,
        loss_mask=np.array(mask, np.uint8),
        rollout_log_probs=np.array(log_probs, np.float32),
        advantages=np.array(advantages, np.float32),
        reward=0.0,
        staleness=0,
    )


numbers = st.floats(-5, 0, width=32)


@given(
    st.lists(
        st.tuples(numbers, numbers, st.integers(0, 1), st.floats(-2, 2, width=32)),
        min_size=1,
        max_size=8,
    ),
    st.floats(0, 3),
)
def test_every_trained_token_is_moved_by_its_gap(
    tokens: list[tuple[float, float, int, float]], coef: float
) -> None:
    own, teacher, mask, advantages = (list(column) for column in zip(*tokens, strict=True))
    (out,) = apply_opd([row(own, mask, advantages)], [Sample(teacher_log_probs=teacher)], coef)
    for t, a in enumerate(advantages):
        expected = a - coef * (own[t] - teacher[t]) if mask[t] and any(mask) else a
        assert out.advantages[t] == pytest.approx(expected, abs=1e-5)
    assert out.advantages.dtype == np.float32


def test_a_teacher_that_agrees_changes_nothing() -> None:
    before = row([-1.0, -2.0], [1, 1], [0.5, 0.5])
    (after,) = apply_opd([before], [Sample(teacher_log_probs=[-1.0, -2.0])], 1.0)
    assert after.advantages.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("teacher", "words"),
    [(None, "no teacher log-probs"), ([-1.0], "1 teacher log-probs for a response of 2")],
)
def test_missing_log_probs_are_refused(teacher: list[float] | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        apply_opd(
            [row([-1.0, -2.0], [1, 1], [0.0, 0.0])],
            [Sample(index=3, teacher_log_probs=teacher)],
            1.0,
        )


def test_an_untrained_sample_needs_no_teacher() -> None:
    untrained = row([0.0], [0], [0.0])
    assert apply_opd([untrained], [Sample()], 1.0) == [untrained]
