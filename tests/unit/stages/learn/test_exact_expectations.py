"""On a policy of one token out of six: expected gradients of the learner's objective under an older
rollout policy, as sums over all six tokens, against what theory says they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.schema import AlgorithmConfig
from pipeline.core.errors import LearnerError
from stages.learn.losses import TokenLogProbs
from stages.learn.objective import policy_objective
from stages.learn.outcome import ObjectiveExtras, policy_metrics
from tests.unit.tokens import FakeTokens

NUM_TOKENS = 6
TOLERANCE = 1e-7  # samples are weighed in float32
EXACT_WEIGHTS: dict[str, Any] = {"use_tis": True, "tis_mode": "truncate", "tis_clip": 1e9}


def logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_TOKENS, generator=generator, dtype=torch.float64)


def all_tokens(rollout: Tensor, advantages: Tensor | None = None) -> FakeTokens:
    """A sample of one token for each of the six, weighing its probability under the rollout policy:
    the mean over samples is the expectation."""
    log_probs = torch.log_softmax(rollout, -1)
    ones = torch.ones(NUM_TOKENS, dtype=torch.int64)
    return FakeTokens(
        contexts=0 * ones,
        targets=torch.arange(NUM_TOKENS),
        advantages=torch.zeros(NUM_TOKENS).double() if advantages is None else advantages,
        rollout_log_probs=log_probs,
        token_counts=ones,
        sample_lengths=ones + 1,
        staleness=ones,
        old=log_probs,
        ref=log_probs,
        shares=log_probs.exp(),
        mean_weights=log_probs.exp(),
    )


def expected_gradient(
    policy: Tensor, batch: FakeTokens, config: AlgorithmConfig, extras: ObjectiveExtras
) -> tuple[Tensor, dict[str, float]]:
    """(The expectation of the loss's gradient at the first optimizer step, the metrics)."""
    x = policy.clone().requires_grad_()
    log_probs = torch.log_softmax(x, -1)
    out = policy_objective(
        TokenLogProbs(log_probs, 0 * log_probs.detach()), None, batch, config, 1.0, extras
    )
    metrics = policy_metrics(out.sums, out.maxima, with_teacher=True)
    return torch.autograd.grad(out.loss, x)[0], metrics


def gradient_of_kl(policy: Tensor, other: Tensor) -> Tensor:
    """Of KL(policy || other), by autograd over the whole distribution."""
    x = policy.clone().requires_grad_()
    p = torch.log_softmax(x, -1)
    return torch.autograd.grad((p.exp() * (p - torch.log_softmax(other, -1))).sum(), x)[0]


@pytest.mark.parametrize("exact_weights", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_policy_that_is_its_teacher_stays(seed: int, exact_weights: bool) -> None:
    """The rollout is of an older policy: with exact weights nothing moves; the gap is 0 token by
    token, so nothing moves without them either."""
    policy, rollout = logits(seed), logits(seed + 100)
    batch = dataclasses.replace(
        all_tokens(rollout), teacher_log_probs=torch.log_softmax(policy, -1)
    )
    config = AlgorithmConfig(**(EXACT_WEIGHTS if exact_weights else {}))
    gradient, metrics = expected_gradient(policy, batch, config, ObjectiveExtras(opd_kl_coef=1.0))
    assert gradient.abs().max() < 1e-12
    assert metrics["opd_kl"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("coef", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_distillation_descends_the_reverse_kl_whatever_the_rollout_policy(
    seed: int, coef: float
) -> None:
    policy, rollout, teacher = logits(seed), logits(seed + 100), logits(seed + 200)
    batch = dataclasses.replace(
        all_tokens(rollout), teacher_log_probs=torch.log_softmax(teacher, -1)
    )
    extras = ObjectiveExtras(opd_kl_coef=coef)
    gradient, metrics = expected_gradient(policy, batch, AlgorithmConfig(**EXACT_WEIGHTS), extras)
    assert torch.allclose(gradient, coef * gradient_of_kl(policy, teacher), atol=TOLERANCE)
    own, theirs = (torch.log_softmax(x, -1).tolist() for x in (policy, teacher))
    plain_mean = sum(a - b for a, b in zip(own, theirs, strict=True)) / NUM_TOKENS
    assert metrics["opd_kl"] == pytest.approx(plain_mean)


def test_distillation_without_a_teacher_is_refused() -> None:
    with pytest.raises(LearnerError, match="--use-opd needs one for every response token"):
        expected_gradient(
            logits(0), all_tokens(logits(1)), AlgorithmConfig(), ObjectiveExtras(opd_kl_coef=1.0)
        )


UNBIASED = {"use_unbiased_kl": True}
BYPASS = {"use_rollout_logprobs": True, **UNBIASED}


def kl_gradient(policy: Tensor, rollout: Tensor, ref: Tensor, **flags: Any) -> Tensor:
    """The expected gradient of the KL loss alone."""
    config = AlgorithmConfig(use_kl_loss=True, kl_loss_coef=1.0, **flags)
    extras = ObjectiveExtras(ref=torch.log_softmax(ref, -1))
    return expected_gradient(policy, all_tokens(rollout), config, extras)[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "flags",
    [
        {"kl_loss_type": "k2", **EXACT_WEIGHTS},
        {"kl_loss_type": "k1", **EXACT_WEIGHTS, **UNBIASED},
        {"kl_loss_type": "k3", **EXACT_WEIGHTS, **UNBIASED},
        {"kl_loss_type": "k1", **BYPASS},
        {"kl_loss_type": "k3", **BYPASS},
    ],
)
def test_the_kl_loss_descends_the_kl_whatever_the_rollout_policy(
    seed: int, flags: dict[str, Any]
) -> None:
    policy, rollout, ref = logits(seed), logits(seed + 100), logits(seed + 200)
    got = kl_gradient(policy, rollout, ref, **flags)
    assert torch.allclose(got, gradient_of_kl(policy, ref), atol=TOLERANCE)


@pytest.mark.parametrize("kl_type", ["k1", "k2", "k3", "low_var_kl"])
def test_with_exact_weights_staleness_changes_no_expectation(kl_type: str) -> None:
    policy, rollout, ref = (logits(seed) for seed in (1, 101, 201))
    on_policy = kl_gradient(policy, policy, ref, kl_loss_type=kl_type)
    got = kl_gradient(policy, rollout, ref, kl_loss_type=kl_type, **EXACT_WEIGHTS)
    assert torch.allclose(got, on_policy, atol=TOLERANCE)
    assert (on_policy.abs().max() < TOLERANCE) == (kl_type == "k1")  # which is why it is refused


def test_the_gradient_of_k3_is_of_the_kl_the_other_way_round() -> None:
    policy, ref = logits(1), logits(201)
    x = policy.clone().requires_grad_()
    q = torch.log_softmax(ref, -1)
    wanted = torch.autograd.grad((q.exp() * (q - torch.log_softmax(x, -1))).sum(), x)[0]
    assert torch.allclose(
        kl_gradient(policy, policy, ref, kl_loss_type="k3"), wanted, atol=TOLERANCE
    )
