"""Policy losses and KL estimates against loops in float64, and what must hold of them for any
numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.learn.losses import (
    apply_kl_to_advantages,
    compute_approx_kl,
    compute_cispo_loss,
    compute_gspo_kl,
    compute_policy_loss,
    token_weights,
)

COUNTS = [3, 1, 7, 5, 4]
N = sum(COUNTS)
finite = st.floats(-3, 3, width=32)


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(8)
    new = torch.randn(N, generator=g).double() * 0.5 - 1
    return new, new + torch.randn(N, generator=g).double(), torch.randn(N, generator=g).double()


@pytest.mark.parametrize(("high", "c"), [(None, None), (0.28, None), (None, 1.5), (0.28, 3.0)])
def test_dual_clip(tokens: tuple[torch.Tensor, ...], high: float | None, c: float | None) -> None:
    new, old, adv = tokens
    got = compute_policy_loss(new, old, adv, eps_clip=0.2, eps_clip_high=high, eps_clip_c=c)
    hits = 0
    for i in range(N):
        r, a = math.exp(new[i] - old[i]), float(adv[i])
        want = max(-r * a, -min(max(r, 0.8), 1 + (high or 0.2)) * a)
        if c is not None and a < 0 and want > -c * a:
            want, hits = -c * a, hits + 1
        assert got.loss[i].item() == pytest.approx(want, abs=1e-12)
    assert hits > 0 or c != 1.5, "no token reached the second bound"


def test_dual_clip_ends_the_gradient_of_huge_ratios() -> None:
    new = torch.tensor([3.0, 0.1], requires_grad=True)
    got = compute_policy_loss(
        new, torch.zeros(2), torch.tensor([-1.0, -1.0]), eps_clip=0.2, eps_clip_c=3.0
    )
    got.loss.sum().backward()
    assert got.loss[0] == 3.0 and got.clipped.tolist() == [True, False]
    assert new.grad is not None and new.grad[0] == 0.0 and new.grad[1] > 0


def test_no_clip_is_importance_sampling(tokens: tuple[torch.Tensor, ...]) -> None:
    new, old, adv = tokens
    got = compute_policy_loss(new, old, adv, eps_clip=None)
    assert torch.equal(got.loss, -(new - old).exp() * adv) and not got.clipped.any()


def test_a_clip_range_of_every_token(tokens: tuple[torch.Tensor, ...]) -> None:
    new, old, adv = tokens
    eps = torch.linspace(0.01, 0.5, N, dtype=torch.float64)
    got = compute_policy_loss(new, old, adv, eps_clip=eps, eps_clip_high=2 * eps).loss
    for i in range(N):
        one = compute_policy_loss(
            new[i : i + 1],
            old[i : i + 1],
            adv[i : i + 1],
            eps_clip=float(eps[i]),
            eps_clip_high=2 * float(eps[i]),
        )
        assert got[i] == one.loss[0]


def test_gspo(tokens: tuple[torch.Tensor, ...]) -> None:
    """The ratio and, by finite differences of the loop, the gradient."""
    new, old, adv = tokens
    counts = torch.tensor(COUNTS)

    def loop(x: list[float]) -> float:
        total, at = 0.0, 0
        for n in COUNTS:
            ratio = math.exp(sum(x[t] - float(old[t]) for t in range(at, at + n)) / n)
            for t in range(at, at + n):
                a = float(adv[t])
                total += max(-ratio * a, -min(max(ratio, 0.8), 1.2) * a) / n
            at += n
        return total

    x = new.clone().requires_grad_()
    kl = compute_gspo_kl(x, old, counts)
    got = compute_policy_loss(-kl, torch.zeros_like(kl), adv, eps_clip=0.2)
    loss = (got.loss * token_weights(counts, per_token=False)).sum()
    loss.backward()
    assert loss.item() == pytest.approx(loop(new.tolist()), abs=1e-6)
    assert x.grad is not None
    for i in range(N):
        up, down = new.tolist(), new.tolist()
        up[i] += 1e-6
        down[i] -= 1e-6
        assert x.grad[i].item() == pytest.approx((loop(up) - loop(down)) / 2e-6, abs=1e-6)


@given(st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=12))
def test_gspo_with_one_token_a_sample_is_ppo(rows: list[tuple[float, float, float]]) -> None:
    new, old, adv = torch.tensor(rows, dtype=torch.float64).unbind(-1)
    kl = compute_gspo_kl(new, old, torch.ones(len(rows), dtype=torch.int64))
    got = compute_policy_loss(
        -kl, torch.zeros_like(kl), adv, eps_clip=0.2, eps_clip_high=0.3, eps_clip_c=3.0
    )
    want = compute_policy_loss(new, old, adv, eps_clip=0.2, eps_clip_high=0.3, eps_clip_c=3.0)
    assert torch.allclose(got.loss, want.loss, atol=1e-12)


def test_cispo(tokens: tuple[torch.Tensor, ...]) -> None:
    """Gradient: the bounded ratio times -A, for clipped tokens too."""
    new, old, adv = tokens
    x = new.clone().requires_grad_()
    got = compute_cispo_loss(x, old, adv, eps_clip=0.2, eps_clip_high=0.5)
    got.loss.sum().backward()
    assert x.grad is not None
    clipped = 0
    for i in range(N):
        r = math.exp(new[i] - old[i])
        bounded = min(max(r, 0.8), 1.5)
        assert got.loss[i].item() == pytest.approx(
            -bounded * float(adv[i]) * float(new[i]), abs=1e-12
        )
        assert x.grad[i].item() == pytest.approx(-bounded * float(adv[i]), abs=1e-12)
        clipped += bounded != r
    assert 0 < clipped == int(got.clipped.sum()) < N


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=12))
def test_k2_and_k3_are_never_negative(rows: list[tuple[float, float]]) -> None:
    p, q = torch.tensor(rows).unbind(-1)
    assert (compute_approx_kl(p, q, "k3") >= 0).all()
    assert (compute_approx_kl(p, q, "k2") >= 0).all()
    assert (compute_approx_kl(p, p, "k3") == 0).all()


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "low_var_kl"])
def test_importance_weighted_kl(tokens: tuple[torch.Tensor, ...], kind: str) -> None:
    new, ref, ratio = (t * 4 for t in tokens)
    got = compute_approx_kl(new, ref, kind, ratio)  # type: ignore[arg-type]
    for i in range(N):
        x, w = float(new[i] - ref[i]), float(ratio[i])
        want = w * {"k1": x, "k2": x * x / 2}.get(kind, math.exp(-x) - 1 + x)
        assert got[i].item() == pytest.approx(
            min(max(want, -10), 10) if kind == "low_var_kl" else want
        )


def test_unbiased_kl_has_the_gradient_of_the_true_kl() -> None:
    """Over all words, sampled by another policy mu: sum mu * w * k3 is KL(p || q), value and
    gradient."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    mu = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    log_q = torch.log_softmax(torch.tensor([0.1, 0.4, -0.5], dtype=torch.float64), -1)
    log_p = torch.log_softmax(logits, -1)
    (true,) = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), logits)
    log_p = torch.log_softmax(logits, -1)
    estimate = (mu * compute_approx_kl(log_p, log_q, "k3", (log_p - mu.log()).exp())).sum()
    (got,) = torch.autograd.grad(estimate, logits)
    assert torch.allclose(got, true, atol=1e-12)


def test_kl_in_the_advantages(tokens: tuple[torch.Tensor, ...]) -> None:
    old, ref, adv = tokens
    old = old.clone().requires_grad_()
    got = apply_kl_to_advantages(adv, old, ref, kl_coef=0.3, kl_type="k2")
    assert not got.requires_grad
    for i in range(N):
        assert got[i].item() == pytest.approx(
            float(adv[i]) - 0.3 * (old[i] - ref[i]).item() ** 2 / 2
        )


def test_means_over_kept_tokens() -> None:
    mask = torch.tensor([1, 0, 1, 0, 0, 1], dtype=torch.bool)
    counts = torch.tensor([3, 2, 1])
    assert token_weights(counts, per_token=False, mask=mask).tolist() == [
        0.5,
        0.0,
        0.5,
        0.0,
        0.0,
        1.0,
    ]
    assert token_weights(counts, per_token=True, mask=mask).tolist() == mask.float().tolist()
