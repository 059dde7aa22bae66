"""Evaluation: what is asked, what is counted, what is stamped."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pipeline.core.types import Sample, Status, VersionSpan
from stages.evaluate import NO_VERSION, EvalSet, Evaluator
from tests.manual_time import ManualTime


class FakeGenerate:
    """Answers i tokens for the i-th sample, by versions that rise; the prompt `bad` fails, `long`
    is truncated."""

    def __init__(self) -> None:
        self.evaluation: list[bool] = []
        self.indices: list[int | None] = []
        self.sampling: list[Any] = []
        self.running = self.most_running = 0

    async def __call__(
        self,
        samples: Sequence[Sample],
        *,
        evaluation: bool = False,
        sampling: Mapping[str, Any] | None = None,
    ) -> list[Sample]:
        self.evaluation.append(evaluation)
        self.sampling.append(sampling)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        for sample in samples:
            assert sample.status is Status.PENDING
            self.indices.append(sample.index)
            if sample.prompt == "bad":
                sample.status, sample.error = Status.FAILED, "no"
                continue
            n = len(self.indices)
            sample.append_response_tokens(
                [1] * n, log_probs=[-1.0] * n, spans=[VersionSpan(10 + n, 0, n)]
            )
            sample.status = Status.TRUNCATED if sample.prompt == "long" else Status.COMPLETED
        return list(samples)


async def reward(samples: Sequence[Sample]) -> None:
    for sample in samples:
        if sample.status is not Status.FAILED:
            sample.reward = {"score": float(sample.label), "other": -1.0}


def eval_set(name: str, prompts: list[Sample], **more: Any) -> EvalSet:
    return EvalSet(name=name, prompts=prompts, reward=reward, **more)


async def test_a_data_set_becomes_one_result() -> None:
    generate = FakeGenerate()
    prompts = [
        Sample(prompt="a", label=1),
        Sample(prompt="bad", label=1),
        Sample(prompt="long", label=0),
    ]
    time = ManualTime()
    evaluator = Evaluator(
        generate, [eval_set("math", prompts, num_samples=2, reward_key="score")], time=time
    )
    (result,) = await evaluator.evaluate(7)
    assert (result.name, result.rollout_id) == ("math", 7)
    assert (result.num_samples, result.num_failed) == (6, 2)
    assert result.reward_mean == 0.5 and result.truncated_fraction == 0.5
    assert result.response_length_mean == (1 + 2 + 5 + 6) / 4
    assert (result.policy_version_min, result.policy_version_max) == (11, 16)
    assert generate.indices == [0, 1, 2, 3, 4, 5] and set(generate.evaluation) == {True}
    # the next evaluation asks the same
    assert all(p.status is Status.PENDING and p.index is None for p in prompts)


async def test_data_sets_come_in_order_and_a_failed_one_has_no_version() -> None:
    generate = FakeGenerate()
    evaluator = Evaluator(
        generate,
        [
            eval_set("b", [Sample(prompt="bad")], sampling={"top_p": 0.7}),
            eval_set("a", [Sample(prompt="x", label=1)]),
        ],
    )
    failed, good = await evaluator.evaluate(0)
    assert (failed.name, failed.num_failed, failed.policy_version_min) == ("b", 1, NO_VERSION)
    assert good.reward_mean == 1.0 and good.error is None and good.first_failure is None
    assert generate.sampling == [{"top_p": 0.7}, {}]


async def test_where_every_sample_failed_nothing_is_measured_and_the_first_error_is_told() -> None:
    evaluator = Evaluator(FakeGenerate(), [eval_set("b", [Sample(prompt="bad")] * 2)])
    (failed,) = await evaluator.evaluate(0)
    assert (failed.num_samples, failed.num_failed) == (2, 2)
    assert failed.reward_mean is failed.response_length_mean is failed.truncated_fraction is None
    assert failed.error == "all 2 samples failed, the first with: no"


async def test_where_some_failed_their_first_error_is_told_beside_the_mean() -> None:
    prompts = [Sample(prompt="x", label=1), Sample(prompt="bad", label=1)]
    (result,) = await Evaluator(FakeGenerate(), [eval_set("a", prompts)]).evaluate(0)
    assert (result.reward_mean, result.num_failed) == (1.0, 1)
    assert (result.error, result.first_failure) == (None, "no")


@pytest.mark.parametrize("limit", [1, 3])
async def test_only_so_many_prompts_are_under_way(limit: int) -> None:
    generate = FakeGenerate()
    prompts = [Sample(prompt="x", label=1)] * 9
    evaluator = Evaluator(generate, [eval_set("a", prompts)], max_concurrent_prompts=limit)
    await evaluator.evaluate(0)
    assert generate.most_running == limit


async def test_rewards_without_a_number_are_measured_by_nobody_and_shown_to_the_log() -> None:
    async def in_words(samples: Sequence[Sample]) -> None:
        for sample in samples:
            sample.reward = {"said": sample.label}

    shown: list[Any] = []
    evaluator = Evaluator(
        FakeGenerate(),
        [EvalSet(name="a", prompts=[Sample(prompt="x", label="good")], reward=in_words)],
        log=lambda rollout_id, data: shown.append(data["a"]["rewards"]),
    )
    (result,) = await evaluator.evaluate(0)
    assert result.reward_mean is None and result.num_failed == 0
    assert result.error is not None and "--eval-reward-key" in result.error
    assert "{'said': 'good'}" in result.error
    assert shown == [[{"said": "good"}]]


async def test_pass_at_k_and_intervals_are_over_prompts() -> None:
    """Three prompts of four samples; of the last, two failed."""
    rewards = {"a": [1.0, 0.0, 0.0, 0.0], "b": [1.0, 1.0, 1.0, 1.0], "c": [0.5, 0.0, None, None]}

    async def scores(samples: Sequence[Sample]) -> None:
        for sample, reward in zip(samples, rewards[str(samples[0].prompt)], strict=True):
            sample.reward = reward
            if reward is None:
                sample.status, sample.error = Status.FAILED, "no"

    prompts = [Sample(prompt=name) for name in rewards]

    def data(**more: Any) -> list[EvalSet]:
        return [EvalSet(name="d", prompts=prompts, reward=scores, num_samples=4, **more)]

    (result,) = await Evaluator(FakeGenerate(), data()).evaluate(0)
    assert (result.reward_mean, result.num_prompts, result.num_failed) == (0.55, 3, 2)
    assert result.reward_mean_low is not None and result.reward_mean_high is not None
    assert 0 < result.reward_mean_low < 0.55 < result.reward_mean_high < 1
    means = {k: estimate.mean for k, estimate in result.pass_at_k.items()}
    # pass@2 of a: 1 - C(3, 2) / C(4, 2); of pass@4, c has too few samples to say
    assert means == {1: pytest.approx((0.25 + 1 + 0) / 3), 2: pytest.approx(1.5 / 3), 4: 1.0}
    (lenient,) = await Evaluator(FakeGenerate(), data(pass_reward=0.5)).evaluate(0)
    assert lenient.pass_at_k[2].mean == pytest.approx((0.5 + 1 + 1) / 3)
