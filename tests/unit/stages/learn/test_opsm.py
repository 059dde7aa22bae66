"""Off-policy sequence masking: slime's, beside a weight; and how much of an on-policy rollout the
preset's bound keeps under the noise of kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch

from configs.corrections import PRESETS
from configs.schema import AlgorithmConfig
from stages.learn.corrections import compute_correction
from stages.learn.losses import TokenLogProbs
from stages.learn.objective import policy_objective
from tests.unit.tokens import FakeSample, make_model, make_samples, pack

LENGTHS = [4, 1, 9, 6, 2, 5, 3]


@pytest.mark.parametrize(
    ("length", "noise", "at_least"),
    [(512, 0.002, 1.0), (512, 0.01, 1.0), (512, 0.03, 0.99), (3, 0.03, 0.99)],
)
def test_the_preset_keeps_what_differs_by_kernel_noise_alone(
    length: int, noise: float, at_least: float
) -> None:
    """The engine's log-probs are the learner's with independent noise a token; all advantages are
    negative."""
    num = 4000
    generator = torch.Generator().manual_seed(0)
    # exp of it has a mean of 1, as a ratio of two policies has under the second
    gap = noise * torch.randn(num * length, generator=generator) - noise**2 / 2
    counts = torch.full((num,), length)
    rollout = torch.full((num * length,), -1.0)
    got = compute_correction(
        PRESETS["opsm"].correction, rollout + gap, rollout, -torch.ones(num * length), counts
    )
    assert got.mask.float().mean() >= at_least


def tokens_of(s: FakeSample) -> Iterator[tuple[int, int, float, float]]:
    yield from zip(s.contexts, s.targets, s.rollout_log_probs, s.old, strict=True)


def loop_loss(
    samples: Sequence[FakeSample], log_p: torch.Tensor, delta: float, bypass: bool
) -> tuple[float, int]:
    """(PPO with slime's mask, and token-level TIS outside the bypass, a token at a time; how many
    samples are dropped)."""
    total, dropped = 0.0, 0
    for s in samples:
        new = [float(log_p[c, t]) for c, t, _, _ in tokens_of(s)]
        anchor = [rollout if bypass else old for _, _, rollout, old in tokens_of(s)]
        gap = sum(a - n for a, n in zip(anchor, new, strict=True)) / len(new)
        if s.advantage < 0 and gap > delta:
            dropped += 1
            continue
        losses = []
        for n, a, (_, _, rollout, old) in zip(new, anchor, tokens_of(s), strict=True):
            ratio = math.exp(n - a)
            weight = 1.0 if bypass else min(math.exp(old - rollout), 2.0)
            clipped = min(max(ratio, 0.8), 1.2)
            losses.append(weight * max(-ratio * s.advantage, -clipped * s.advantage))
        total += sum(losses) / len(losses)
    return total / len(samples), dropped


@pytest.mark.parametrize("bypass", [False, True])
@pytest.mark.parametrize("delta", [0.0, 0.05, 0.2, 10.0])
def test_beside_a_weight(delta: float, bypass: bool) -> None:
    samples = make_samples(LENGTHS, 5, spread=0.5)
    log_p = torch.log_softmax(make_model(5).double(), -1)
    batch = pack(samples, torch.float64)
    now = log_p[batch.contexts, batch.targets]
    flags = {"use_rollout_logprobs": True} if bypass else {"use_tis": True}
    config = AlgorithmConfig(use_opsm=True, opsm_delta=delta, **flags)
    got = policy_objective(TokenLogProbs(now, 0 * now), batch.old, batch, config, len(samples))
    want, dropped = loop_loss(samples, log_p, delta, bypass)
    assert got.loss.item() == pytest.approx(want, abs=1e-6)
    assert (dropped > 0) == (delta < 1)
