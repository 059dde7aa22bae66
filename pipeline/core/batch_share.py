"""What one data-parallel rank is given of a batch: its own samples, and of the others' only what it
must know to act as they do."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.core.errors import LearnerError
from pipeline.core.types import MicroBatch, OptimizerStep, TrainBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShare:
    """An optimizer step, as one rank sees it."""

    micro_batches: tuple[MicroBatch, ...]  # equally many on every rank
    fewest_samples: int  # that a rank has
    has_images: bool  # has any sample of any rank?
    num_samples: float  # as OptimizerStep says
    num_loss_tokens: int
    num_trajectories: int  # with a trained token, over all ranks; their samples name them from 0 on
    is_empty: bool  # has no rank a micro-batch? Then all skip it; one alone must not


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShare:
    """A rollout, as one rank sees it."""

    rollout_id: int
    policy_version: int
    num_ranks: int  # among which the batch was cut
    steps: tuple[StepShare, ...]


def step_shares(step: OptimizerStep, num_ranks: int) -> list[StepShare]:
    """The share of every data-parallel rank. Raises LearnerError when the step is cut for another
    number of them."""
    if len(step.per_rank) != num_ranks:
        raise LearnerError(
            f"the batch is cut for {len(step.per_rank)} data-parallel ranks, the learner has"
            f" {num_ranks}"
        )
    fewest = min(sum(map(len, rank)) for rank in step.per_rank)
    images = any(s.multimodal for rank in step.per_rank for mb in rank for s in mb)
    return [
        StepShare(
            micro_batches=mine,
            fewest_samples=fewest,
            has_images=images,
            num_samples=step.num_samples,
            num_loss_tokens=step.num_loss_tokens,
            num_trajectories=step.num_trajectories,
            is_empty=step.is_empty,
        )
        for mine in step.per_rank
    ]


def batch_shares(batch: TrainBatch, num_ranks: int) -> list[BatchShare]:
    """As `step_shares`, of a whole rollout."""
    steps = [step_shares(step, num_ranks) for step in batch.steps]
    return [
        BatchShare(
            rollout_id=batch.rollout_id,
            policy_version=batch.policy_version,
            num_ranks=num_ranks,
            steps=tuple(shares[rank] for shares in steps),
        )
        for rank in range(num_ranks)
    ]
