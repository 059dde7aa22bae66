"""A-3PO's proximal policy: the loss and its gradient against a loop, what it is at either end, and
the statistics of a step."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from configs.schema import AlgorithmConfig, Config
from pipeline.core.types import Sample, VersionSpan
from stages.advantage.train_samples import to_train_sample
from stages.learn.log_prob_pass import Prepared
from stages.learn.losses import TokenLogProbs
from stages.learn.objective import policy_objective, proximal_log_probs
from stages.learn.settings import LearnerSettings
from stages.learn.step_objective import StepObjective
from stages.learn.trained_tokens import trained_fields
from tests.unit.tokens import FakeTokens, make_model, make_samples, pack

LENGTHS = [4, 1, 9, 6, 2]
FLAGS = {"proximal": "loglinear", "use_tis": True}


def batch(seed: int) -> FakeTokens:
    packed = pack(make_samples(LENGTHS, seed, spread=0.5), torch.float64)
    stale = torch.randint(6, (sum(LENGTHS),), generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(packed, token_staleness=stale)


@pytest.mark.parametrize("seed", range(4))
def test_against_a_loop(seed: int) -> None:
    """PPO against exp(rollout / d + (1 - 1/d) new), times its truncated weight; the proximal policy
    has no gradient."""
    tokens, table = batch(seed), make_model(seed).double().requires_grad_()
    log_p = torch.log_softmax(table, -1)[tokens.contexts, tokens.targets]
    got = policy_objective(
        TokenLogProbs(log_p, 0 * log_p.detach()), None, tokens, AlgorithmConfig(**FLAGS), 5.0
    )
    (gradient,) = torch.autograd.grad(got.loss, table, retain_graph=True)
    total, at = torch.zeros((), dtype=torch.float64), 0
    for count in LENGTHS:
        for i in range(at, at + count):
            d, new = int(tokens.token_staleness[i]), float(log_p[i].detach())  # type: ignore[index]
            rollout, advantage = float(tokens.rollout_log_probs[i]), float(tokens.advantages[i])
            proximal = new if d == 0 else rollout / d + (1 - 1 / d) * new
            ratio = (log_p[i] - proximal).exp()
            loss = torch.maximum(-ratio * advantage, -ratio.clamp(0.8, 1.2) * advantage)
            total = total + min(math.exp(proximal - rollout), 2.0) * loss / count / 5
        at += count
    (want,) = torch.autograd.grad(total, table)
    assert got.loss.item() == pytest.approx(total.item(), abs=1e-6)
    assert torch.allclose(gradient, want, atol=1e-6)


def test_its_ends() -> None:
    """Of staleness 0 it is the new policy, of 1 the rollout's, and of many nearly the new one."""
    tokens = batch(0)
    new, config = tokens.old, AlgorithmConfig(**FLAGS)
    for d, want in ((0, new), (1, tokens.rollout_log_probs), (10**9, new)):
        stale = torch.full((sum(LENGTHS),), d)
        got = proximal_log_probs(
            new, None, dataclasses.replace(tokens, token_staleness=stale), config
        )
        assert torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_the_statistics_of_a_step_are_of_the_same_policy(first: bool) -> None:
    """The mean weight that --correction-batch-normalize divides by."""
    tokens = batch(2)
    config = AlgorithmConfig(
        proximal="loglinear", off_policy_correction="tis", correction_batch_normalize=True
    )
    goal = StepObjective(LearnerSettings(config=Config(algorithm=config)))
    now = tokens.old
    evidence = goal.evidence(Prepared(tokens, old=now if first else None), now)
    weights = [
        min(math.exp(p - r), 2.0)
        for p, r in zip(
            proximal_log_probs(now, None, tokens, config).tolist(),
            tokens.rollout_log_probs.tolist(),
            strict=True,
        )
    ]
    assert evidence.sum_weights == pytest.approx(sum(weights))


def test_staleness_of_tokens_is_counted_from_their_own_versions() -> None:
    spans = [VersionSpan(version=3, start=0, end=2), VersionSpan(version=5, start=3, end=4)]
    sample = Sample(
        index=0,
        group_index=0,
        tokens=[0, 1, 2, 3, 4],
        response_length=4,
        loss_mask=[1, 1, 0, 1],
        rollout_log_probs=[-1.0] * 4,
        weight_versions=spans,
    )
    row = to_train_sample(sample, reward=0.0, trajectory=0, policy_version=6)
    assert row.token_staleness is not None and row.token_staleness.tolist() == [3, 3, 0, 1]
    fields = SimpleNamespace(**trained_fields([row], torch.device("cpu")))
    assert fields.token_staleness.tolist() == [3, 3, 1]
    unknown = dataclasses.replace(row, token_staleness=None)
    fields = SimpleNamespace(**trained_fields([unknown], torch.device("cpu")))
    assert fields.token_staleness.tolist() == [3, 3, 3]
