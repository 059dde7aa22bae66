"""Losses and corrections that asynchronous systems publish, each against its source's formula, a
token at a time in float64: loss and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.schema import AlgorithmConfig
from tests.unit.stages.learn.test_losses_objective import step
from tests.unit.tokens import FakeSample, make_model, make_samples

LENGTHS = [7, 1, 12, 4, 9]
Token = tuple[Tensor, float, float, float]  # log new (with its gradient), old, rollout, advantage


def tokens_of(s: FakeSample, log_p: Tensor) -> list[Token]:
    return [
        (log_p[c, t], old, rollout, s.advantage)
        for c, t, old, rollout in zip(
            s.contexts, s.targets, s.old, s.rollout_log_probs, strict=True
        )
    ]


def two_sided(sample: list[Token]) -> list[Tensor]:
    """GLM-5, arXiv:2602.15763, eq. 3 to 5: f(r) A log pi, f(r) = r inside (0.8, 1.28), else 0."""
    out = []
    for now, _, rollout, a in sample:
        r = math.exp(now.item() - rollout)
        # as r A, whose gradient is r A grad log pi
        out.append(-(now - rollout).exp() * a if 0.8 < r < 1.28 else 0 * now)
    return out


def icepop_bypass(sample: list[Token]) -> list[Tensor]:
    return [
        -(now - rollout).exp() * a if 0.5 <= math.exp(now.item() - rollout) <= 5.0 else 0 * now
        for now, _, rollout, a in sample
    ]


def prime_rl(sample: list[Token]) -> list[Tensor]:
    """Its default_loss_fn: DPPO's mask on the policy loss, kl_tau on every token."""
    out = []
    for now, _, rollout, a in sample:
        change = math.exp(now.item()) - math.exp(rollout)
        masked = change > 0.2 if a > 0 else change < -0.2
        policy = 0 * now if masked else -(now - rollout).exp() * a
        out.append(policy + 1e-3 * (now - rollout) ** 2)
    return out


def tis_with_tau(sample: list[Token]) -> list[Tensor]:
    out = []
    for now, old, rollout, a in sample:
        r = (now - old).exp()
        loss = torch.maximum(-r * a, -r.clamp(0.8, 1.2) * a) * min(math.exp(old - rollout), 2.0)
        out.append(loss + 0.05 * (now - rollout) ** 2)
    return out


def sapo(sample: list[Token]) -> list[Tensor]:
    """arXiv:2511.20347; TRL's: sigmoid(tau (r - 1)) * 4 / tau."""
    out = []
    for now, old, _, a in sample:
        tau = 1.0 if a > 0 else 1.05
        out.append(-4 / tau / (1 + (-tau * ((now - old).exp() - 1)).exp()) * a)
    return out


def vespo(sample: list[Token]) -> list[Tensor]:
    """arXiv:2602.10693; its authors' compute_policy_loss_vespo."""
    log_w = sum(now.item() - rollout for now, _, rollout, _ in sample)
    k, rate = (2.0, 3.0) if sample[0][3] >= 0 else (3.0, 2.0)
    phi = math.exp(rate) * math.exp(log_w) ** k * math.exp(-rate * math.exp(log_w))
    return [-phi * a * now for now, _, _, a in sample]


def geo_rs_tis(sample: list[Token]) -> list[Tensor]:
    """verl's decoupled_geo_rs_token_tis with wider bounds: the sample by its mean, a token by its
    truncated weight."""
    mean = sum(old - rollout for _, old, rollout, _ in sample) / len(sample)
    if not 0.8 <= math.exp(mean) <= 1.25:
        return [0 * now for now, *_ in sample]
    return [
        torch.maximum(-(now - old).exp() * a, -(now - old).exp().clamp(0.8, 1.2) * a)
        * min(math.exp(old - rollout), 2.0)
        for now, old, rollout, a in sample
    ]


CASES: dict[str, tuple[dict[str, Any], Callable[[list[Token]], list[Tensor]]]] = {
    "two-sided": ({"off_policy_correction": "two-sided"}, two_sided),
    "icepop-bypass": (
        {"off_policy_correction": "icepop", "use_rollout_logprobs": True},
        icepop_bypass,
    ),
    "prime-rl": ({"off_policy_correction": "dppo-kl"}, prime_rl),
    "tis-tau": ({"use_tis": True, "correction_kl_tau": 0.05}, tis_with_tau),
    "sapo": ({"advantage_estimator": "sapo"}, sapo),
    "vespo": ({"advantage_estimator": "vespo"}, vespo),
    "geo-rs-tis": (
        {"off_policy_correction": "geo-rs-tis", "correction_low": 0.8, "correction_high": 1.25},
        geo_rs_tis,
    ),
    "tis + geo-rs": (
        {
            "use_tis": True,
            "off_policy_correction": "geo-rs",
            "correction_low": 0.8,
            "correction_high": 1.25,
        },
        geo_rs_tis,
    ),
}


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_against_the_source(name: str, per_token: bool) -> None:
    flags, formula = CASES[name]
    config = AlgorithmConfig(**flags, calculate_per_token_loss=per_token)
    zeros = 0
    for seed in range(5):
        samples, table = make_samples(LENGTHS, seed, spread=0.5), make_model(seed)
        twin = table.double().requires_grad_()
        log_p = torch.log_softmax(twin, -1)
        losses = [formula(tokens_of(s, log_p)) for s in samples]
        if per_token:
            want = sum(torch.stack(x).sum() for x in losses) / sum(LENGTHS)
        else:
            want = sum(torch.stack(x).mean() for x in losses) / len(LENGTHS)
        zeros += sum(v.item() == 0 for x in losses for v in x)
        assert isinstance(want, Tensor)
        want.backward()
        assert twin.grad is not None
        loss, grad, _, _ = step([samples[:2], samples[2:]], config, table, torch.float64)
        # log-probs are float32, and a sequence's weight is exp of a sum of them
        assert loss == pytest.approx(want.item(), rel=1e-5, abs=1e-6)
        assert (grad - twin.grad).abs().max() < 5e-6
    assert name in ("sapo", "vespo", "tis-tau", "prime-rl") or 5 < zeros < 5 * sum(LENGTHS) - 5


@pytest.mark.parametrize("spread", [0.05, 0.5, 1.5])
def test_m2po_as_its_authors_clip(spread: float) -> None:
    """Infini-AI-Lab/M2PO, compute_m2po_policy_loss: one clip for the step, from the capped second
    moment of the harmful tokens, never narrower than 0.3 and 0.5."""
    clips = []
    for seed in range(4):
        samples, table = make_samples(LENGTHS, seed, spread=spread), make_model(seed)
        twin = table.double().requires_grad_()
        tokens = [t for s in samples for t in tokens_of(s, torch.log_softmax(twin, -1))]
        harmful = sorted(
            (now.item() - r) ** 2 for now, _, r, a in tokens if (now.item() - r) * a > 0
        )
        low, high = 1.0, math.inf
        if sum(harmful) > 0.04 * len(harmful):
            fitting = [m for m in harmful if sum(min(u, m) for u in harmful) < 0.04 * len(harmful)]
            tau = math.sqrt(max(fitting, default=0.0))
            low, high = max(1 - math.exp(-tau), 0.3), max(math.exp(tau) - 1, 0.5)
        clips.append(high)
        losses = []
        for now, _, rollout, a in tokens:
            r = (now - rollout).exp()
            losses.append(torch.maximum(-r * a, -r.clamp(1 - low, 1 + high) * a))
        want = torch.stack(losses).mean()
        want.backward()
        assert twin.grad is not None
        config = AlgorithmConfig(off_policy_correction="m2po-clip", calculate_per_token_loss=True)
        loss, grad, _, _ = step([samples[:3], samples[3:]], config, table, torch.float64)
        assert loss == pytest.approx(want.item(), abs=1e-6)
        assert (grad - twin.grad).abs().max() < 1e-6
    assert (spread > 0.1) == any(c < math.inf for c in clips)
