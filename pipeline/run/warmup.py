"""Supervised warm-up: a few cross-entropy steps on (prompt, answer) pairs, through the same
learner, before the first rollout.

Micro-batches are cut like a rollout's; the optimizer starts afresh afterwards, so that the warm-up
leaves only its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from configs.schema import AlgorithmConfig, WarmupConfig
from pipeline.core.format import number
from pipeline.core.types import OptimizerStep, TrainBatch, TrainSample

logger = logging.getLogger(__name__)

# (prompt token ids, answer token ids, the end-of-text token among them)
Pair = tuple[Sequence[int], Sequence[int]]


class SupervisedLearner(Protocol):
    """The learner's side of a warm-up."""

    async def sft_step(self, step: OptimizerStep, lr: float) -> Mapping[str, float]: ...
    async def reset_optimizer(self) -> None: ...


def supervised_sample(index: int, prompt: Sequence[int], answer: Sequence[int]) -> TrainSample:
    """A pair as a sample with loss on every answer token, without log-probs and advantages."""
    n = len(answer)
    return TrainSample(
        index=index,
        group_index=index,
        tokens=np.asarray([*prompt, *answer], dtype=np.int64),
        response_length=n,
        loss_mask=np.ones(n, dtype=np.uint8),
        rollout_log_probs=np.zeros(n, dtype=np.float32),
        advantages=np.zeros(n, dtype=np.float32),
        reward=0.0,
        staleness=0,
    )


async def warm_up(
    learner: SupervisedLearner,
    pairs: Iterator[Pair],
    config: WarmupConfig,
    algorithm: AlgorithmConfig,
    num_dp_ranks: int,
    make_batch: Callable[..., TrainBatch],
) -> float:
    """Takes `config.sft_steps` steps; returns the last loss (nats a token)."""
    loss = float("nan")
    for step in range(config.sft_steps):
        samples = [supervised_sample(i, *next(pairs)) for i in range(config.sft_batch_size)]
        batch = make_batch(
            samples,
            rollout_id=step,
            policy_version=0,
            num_dp_ranks=num_dp_ranks,
            num_steps_per_rollout=1,
            max_tokens=algorithm.max_tokens_per_gpu,
        )
        metrics = await learner.sft_step(batch.steps[0], config.sft_lr * _decay(step, config))
        loss = metrics["loss"]
        if step % 20 == 0 or step + 1 == config.sft_steps:
            logger.info("warm-up step %d/%d: loss %s", step + 1, config.sft_steps, number(loss))
    await learner.reset_optimizer()
    return loss


def _decay(step: int, config: WarmupConfig) -> float:
    """The factor of the learning rate: 1, then falling linearly over the last `sft_decay_steps`, of
    which the last still learns (1/sft_decay_steps)."""
    return min(1.0, (config.sft_steps - step) / max(1, config.sft_decay_steps))
