"""Every rank is given its own samples, and no other's."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from pipeline.core.batch_share import batch_shares, step_shares
from pipeline.core.errors import LearnerError
from pipeline.core.types import OptimizerStep, TrainBatch, TrainSample


def sample(index: int, num_tokens: int = 1000) -> TrainSample:
    return TrainSample(
        index=index,
        group_index=index,
        tokens=np.full(num_tokens, index),
        response_length=1,
        loss_mask=np.ones(1, np.uint8),
        rollout_log_probs=np.zeros(1, np.float32),
        advantages=np.zeros(1, np.float32),
        reward=0.0,
        staleness=0,
    )


def step(*per_rank: list[list[TrainSample]]) -> OptimizerStep:
    return OptimizerStep(
        per_rank=tuple(tuple(tuple(mb) for mb in rank) for rank in per_rank),
        num_samples=7.0,
        num_loss_tokens=5.0,
    )


def test_shares_are_the_batch_dealt_out() -> None:
    seen = dataclasses.replace(sample(3), multimodal={"pixel_values": np.zeros(2)})
    first, second = step([[sample(0)], [sample(1), sample(2)]], [[seen], [sample(4)]]), step([], [])
    batch = TrainBatch(rollout_id=8, policy_version=9, steps=(first, second))
    shares = batch_shares(batch, 2)
    assert [
        [[[s.index for s in mb] for mb in step.micro_batches] for step in share.steps]
        for share in shares
    ] == [[[[0], [1, 2]], []], [[[3], [4]], []]]
    for share in shares:
        assert (share.rollout_id, share.policy_version, share.num_ranks) == (8, 9, 2)
        assert [s.is_empty for s in share.steps] == [False, True]
        assert [s.has_images for s in share.steps] == [True, False]
        found = share.steps[0]
        assert (found.fewest_samples, found.num_samples, found.num_loss_tokens) == (2, 7.0, 5.0)
    whole, part = (len(pickle.dumps(found)) for found in (batch, shares[1]))
    assert part < whole / 2


def test_a_step_that_is_cut_for_others_is_refused() -> None:
    with pytest.raises(LearnerError, match="cut for 2 data-parallel ranks, the learner has 3"):
        step_shares(step([[sample(0)]], [[sample(1)]]), 3)


def test_a_rank_without_samples_does_not_skip_what_others_train_on() -> None:
    """It would leave them alone in a collective; the rank refuses such a step instead."""
    shares = step_shares(step([], [[sample(1)]]), 2)
    assert [share.is_empty for share in shares] == [False, False]
    assert shares[0].micro_batches == ()
