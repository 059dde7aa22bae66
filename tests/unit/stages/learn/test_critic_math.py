"""GAE, value loss and whitening against loops over python floats, and identities of GAE."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.learn.critic import compute_gae, compute_value_loss, whiten_over_ranks

NUMBER = st.floats(-10, 10, allow_subnormal=False, width=32)
# sums of these are exact, so that a value at the very edge of the clip range is on one side of it
EIGHTH = st.integers(-40, 40).map(lambda n: n / 8)
# (reward, value) a trained token
SAMPLES = st.lists(st.lists(st.tuples(NUMBER, NUMBER), max_size=7), min_size=1, max_size=5)
UNIT = st.floats(0, 1)


def run(
    samples: list[list[tuple[float, float]]], gamma: float, lambd: float
) -> tuple[list[float], list[float]]:
    rewards, values = (
        torch.tensor([pair[i] for s in samples for pair in s], dtype=torch.float32) for i in (0, 1)
    )
    found = compute_gae(
        rewards, values, torch.tensor([len(s) for s in samples]), gamma=gamma, lambd=lambd
    )
    return found.advantages.tolist(), found.returns.tolist()


@settings(max_examples=200)
@given(samples=SAMPLES, gamma=UNIT, lambd=UNIT)
def test_gae_is_the_discounted_sum_of_temporal_differences(
    samples: list[list[tuple[float, float]]], gamma: float, lambd: float
) -> None:
    """Equation 16 as it is written: A_t = sum over l of (gamma lambda)^l delta_{t+l}."""
    advantages, returns = run(samples, gamma, lambd)
    want, want_returns = [], []
    for sample in samples:
        values = [v for _, v in sample] + [0.0]
        deltas = [r + gamma * values[t + 1] - values[t] for t, (r, _) in enumerate(sample)]
        for t in range(len(sample)):
            a = math.fsum((gamma * lambd) ** k * deltas[t + k] for k in range(len(sample) - t))
            want.append(a)
            want_returns.append(a + values[t])
    assert advantages == pytest.approx(want, rel=1e-5, abs=1e-5)
    assert returns == pytest.approx(want_returns, rel=1e-5, abs=1e-5)


@settings(max_examples=100)
@given(samples=SAMPLES, gamma=UNIT)
def test_with_lambda_one_the_returns_do_not_ask_the_critic(
    samples: list[list[tuple[float, float]]], gamma: float
) -> None:
    _, returns = run(samples, gamma, 1.0)
    want = [
        math.fsum(gamma**k * s[t + k][0] for k in range(len(s) - t))
        for s in samples
        for t in range(len(s))
    ]
    assert returns == pytest.approx(want, rel=1e-4, abs=1e-4)


@settings(max_examples=100)
@given(samples=SAMPLES, gamma=UNIT, lambd=UNIT)
def test_samples_do_not_look_at_each_other(
    samples: list[list[tuple[float, float]]], gamma: float, lambd: float
) -> None:
    alone = [a for s in samples for a in run([s], gamma, lambd)[0]]
    assert run(samples, gamma, lambd)[0] == alone


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rewards and 3 values for 4 trained tokens"):
        compute_gae(torch.zeros(3), torch.zeros(3), torch.tensor([2, 2]))


@settings(max_examples=200)
@given(
    tokens=st.lists(st.tuples(EIGHTH, EIGHTH, EIGHTH), min_size=1, max_size=8),
    clip=st.integers(1, 24).map(lambda n: n / 8),
)
def test_value_loss_against_a_loop(tokens: list[tuple[float, float, float]], clip: float) -> None:
    values, old, returns = (
        torch.tensor(column, dtype=torch.float64, requires_grad=i == 0)
        for i, column in enumerate(zip(*tokens, strict=True))
    )
    found = compute_value_loss(values, old, returns, value_clip=clip)
    (gradient,) = torch.autograd.grad(found.loss.sum(), values)
    for i, (v, o, r) in enumerate(tokens):
        bounded = min(max(v, o - clip), o + clip)
        assert found.loss[i].item() == pytest.approx(
            max((v - r) ** 2, (bounded - r) ** 2), abs=1e-9
        )
        assert bool(found.clipped[i]) == (abs(v - o) > clip)
        if (bounded - r) ** 2 > (v - r) ** 2:
            assert gradient[i] == 0
        elif (v - r) ** 2 != (bounded - r) ** 2 or bounded == v:  # a tie has two gradients
            assert gradient[i].item() == pytest.approx(2 * (v - r), abs=1e-9)


def test_nothing_is_clipped_by_rounding() -> None:
    """In float32 V_old + (V - V_old) is not V, and either may be further from R."""
    old, values, returns = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0))
    bounded = old + (values - old).clamp(-50, 50)
    assert ((bounded - returns).square() > (values - returns).square()).sum() > 100
    assert not compute_value_loss(values, old, returns, value_clip=50.0).clipped.any()


@settings(max_examples=100)
@given(parts=st.lists(st.lists(st.integers(-50, 50), max_size=5), min_size=1, max_size=4))
def test_whitening_against_a_loop(parts: list[list[int]]) -> None:
    flat = [float(x) for part in parts for x in part]
    out = whiten_over_ranks([torch.tensor(part, dtype=torch.float32) for part in parts])
    assert [len(o) for o in out] == [len(p) for p in parts]
    if not flat:
        return
    mean = math.fsum(flat) / len(flat)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in flat) / max(len(flat) - 1, 1) + 1e-8)
    assert [x for o in out for x in o.tolist()] == pytest.approx(
        [(x - mean) / std for x in flat], rel=1e-4, abs=1e-5
    )
