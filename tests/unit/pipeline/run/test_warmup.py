"""The supervised warm-up: which batches the learner is given, at which learning rate, and that the
optimizer starts afresh."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest

from configs.schema import AlgorithmConfig, WarmupConfig
from pipeline.core.types import OptimizerStep
from pipeline.run.warmup import supervised_sample, warm_up
from stages.batch import make_batch


class FakeLearner:
    def __init__(self) -> None:
        self.steps: list[OptimizerStep] = []
        self.rates: list[float] = []
        self.resets_after: list[int] = []

    async def sft_step(self, step: OptimizerStep, lr: float) -> Mapping[str, float]:
        self.steps.append(step)
        self.rates.append(lr)
        return {"loss": 10.0 - len(self.steps)}

    async def reset_optimizer(self) -> None:
        self.resets_after.append(len(self.steps))


async def run(num_dp_ranks: int = 1, **config: float) -> tuple[FakeLearner, float]:
    learner = FakeLearner()
    pairs = (([i, i + 1], [i + 2]) for i in itertools.count())
    loss = await warm_up(
        learner, pairs, WarmupConfig(**config), AlgorithmConfig(), num_dp_ranks, make_batch
    )  # type: ignore[arg-type]
    return learner, loss


def test_the_loss_is_on_the_answer_alone() -> None:
    sample = supervised_sample(3, [7, 8, 9], [4, 5])
    assert sample.tokens.tolist() == [7, 8, 9, 4, 5]
    assert (sample.response_length, sample.loss_mask.tolist()) == (2, [1, 1])


async def test_each_pair_is_used_once_and_the_optimizer_starts_afresh_at_the_end() -> None:
    learner, loss = await run(sft_steps=3, sft_batch_size=4, sft_lr=1e-3, num_dp_ranks=2)
    seen = [
        [s.tokens[0] for rank in step.per_rank for mb in rank for s in mb] for step in learner.steps
    ]
    assert [sorted(first) for first in seen] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert all(len(step.per_rank) == 2 for step in learner.steps)
    assert (learner.resets_after, loss) == ([3], 7.0)


async def test_the_learning_rate_is_constant_unless_a_decay_is_asked_for() -> None:
    learner, _ = await run(sft_steps=4, sft_batch_size=2, sft_lr=0.5)
    assert learner.rates == [0.5] * 4


async def test_the_last_steps_fall_linearly_and_none_is_without_effect() -> None:
    learner, _ = await run(sft_steps=6, sft_batch_size=2, sft_lr=1.0, sft_decay_steps=4)
    assert learner.rates == pytest.approx([1.0, 1.0, 1.0, 0.75, 0.5, 0.25])
