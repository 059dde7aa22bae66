"""The examples of a user's own loss and correction, through the objective that calls them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from configs.schema import AlgorithmConfig
from examples.hooks.custom_loss import get_pg_loss_reducer, loss_function, tis_function
from stages.learn.losses import compute_log_probs_from_logits
from stages.learn.objective import policy_objective
from stages.learn.outcome import ObjectiveExtras
from stages.learn.user_objective import custom_objective
from tests.unit.tokens import make_model, make_samples, pack

LENGTHS = [4, 1, 9, 6, 2, 12]


def test_the_loss_trains_on_good_samples_only() -> None:
    samples, table = make_samples(LENGTHS, 4, spread=0.3), make_model(4).requires_grad_()
    batch = pack(samples)
    logits = table[batch.contexts]
    now = compute_log_probs_from_logits(logits, batch.targets)
    got = custom_objective(
        loss_function,
        logits[None],
        now,
        batch.old,
        batch,
        6.0,
        AlgorithmConfig(),
        ObjectiveExtras(),
    )
    each = [-part.mean().item() for part in now.log_probs.split(LENGTHS)]
    good = [s.advantage > 0 for s in samples]
    assert 0 < sum(good) < 6
    assert got.loss.item() == pytest.approx(
        sum(x for x, g in zip(each, good, strict=True) if g) / 6, abs=1e-6
    )
    assert got.extra["good_fraction"].item() == pytest.approx(sum(good))


def test_the_reducer_divides_by_a_constant() -> None:
    reduce = get_pg_loss_reducer([9, 9], [2, 3], [torch.ones(2), torch.tensor([1.0, 0.0, 1.0])])
    assert reduce(torch.arange(5.0)).item() == pytest.approx((0 + 1 + 2 + 4) / 1024)


def test_the_correction_drops_samples_that_are_far_off() -> None:
    config, table = AlgorithmConfig(use_tis=True), make_model(4)
    args = SimpleNamespace(tis_clip=2.0, tis_clip_low=0.0)
    batch = pack(make_samples(LENGTHS, 4, spread=0.3))
    now = compute_log_probs_from_logits(table[batch.contexts], batch.targets)
    got = policy_objective(
        now, batch.old, batch, config, 6.0, ObjectiveExtras(tis_function=tis_function, args=args)
    )
    gaps = (batch.old - batch.rollout_log_probs).split(LENGTHS)
    want, kept = 0.0, 0
    at = 0
    for gap, n in zip(gaps, LENGTHS, strict=True):
        if abs(gap.mean().item()) <= 0.1:
            kept += 1
            r, a = (now.log_probs - batch.old)[at : at + n].exp(), batch.advantages[at : at + n]
            want += (
                torch.maximum(-r * a, -r.clamp(0.8, 1.2) * a) * gap.exp().clamp(max=2.0)
            ).mean().item() / 6
        at += n
    assert 0 < kept < 6
    assert got.loss.item() == pytest.approx(want, abs=1e-6)
