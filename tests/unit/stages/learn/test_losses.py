"""Every loss function against a loop over tokens in float64."""

from __future__ import annotations

import math

import pytest
import torch

from stages.learn.losses import (
    compute_approx_kl,
    compute_ess_fraction,
    compute_log_probs_from_logits,
    compute_policy_loss,
    compute_sft_loss,
    compute_tis_weights,
    sum_of_sample_mean,
    sum_of_tokens,
    token_weights,
)
from tests.unit.peak_memory import peak_bytes

N, V = 1100, 7  # more rows than one piece of the chunked kernels


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def softmax_loop(row: list[float]) -> list[float]:
    top = max(row)
    exp = [math.exp(x - top) for x in row]
    return [e / sum(exp) for e in exp]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_entropy(generator: torch.Generator, temperature: float) -> None:
    logits = torch.randn(N, V, generator=generator) * 3
    targets = torch.randint(V, (N,), generator=generator)
    got = compute_log_probs_from_logits(logits, targets, temperature=temperature)
    for i in range(0, N, 13):
        p = softmax_loop([x / temperature for x in logits[i].double().tolist()])
        assert got.log_probs[i].item() == pytest.approx(math.log(p[targets[i]]), abs=1e-5)
        assert got.entropy is not None
        assert got.entropy[i].item() == pytest.approx(-sum(q * math.log(q) for q in p), abs=1e-5)


def test_log_probs_gradients(generator: torch.Generator) -> None:
    logits = torch.randn(N, V, generator=generator, requires_grad=True)
    twin = logits.detach().double().requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    a, b = torch.randn(2, N, generator=generator)
    got = compute_log_probs_from_logits(logits, targets, temperature=0.5)
    assert got.entropy is not None
    (got.log_probs * a + got.entropy * b).sum().backward()
    log_p = torch.log_softmax(twin / 0.5, -1)
    (
        log_p.gather(-1, targets[:, None])[:, 0] * a + -(log_p.exp() * log_p).sum(-1) * b
    ).sum().backward()
    assert logits.grad is not None and twin.grad is not None
    assert (logits.grad - twin.grad).abs().max() < 1e-5


def test_log_probs_gradients_without_entropy(generator: torch.Generator) -> None:
    logits = torch.randn(9, V, generator=generator, requires_grad=True)
    twin = logits.detach().double().requires_grad_()
    targets = torch.randint(V, (9,), generator=generator)
    got = compute_log_probs_from_logits(logits, targets, with_entropy=False)
    assert got.entropy is None
    got.log_probs.square().sum().backward()
    torch.log_softmax(twin, -1).gather(-1, targets[:, None]).square().sum().backward()
    assert logits.grad is not None and twin.grad is not None
    assert (logits.grad - twin.grad).abs().max() < 1e-5


@pytest.mark.parametrize("chunk_size", [1, 7, N - 1, N, -1])
@pytest.mark.parametrize("overwrite", [False, True])
def test_chunks_change_nothing(
    generator: torch.Generator, chunk_size: int, overwrite: bool
) -> None:
    data = torch.randn(N, V, generator=generator) * 3
    targets = torch.randint(V, (N,), generator=generator)
    a, b = torch.randn(2, N, generator=generator)
    found = []
    for options in ({}, {"chunk_size": chunk_size, "overwrite_logits": overwrite}):
        leaf = data.clone().requires_grad_()
        got = compute_log_probs_from_logits(leaf * 1.0, targets, temperature=0.8, **options)
        assert got.entropy is not None
        (got.log_probs * a + got.entropy * b).sum().backward()
        assert leaf.grad is not None
        found.append((got.log_probs.detach(), got.entropy.detach(), leaf.grad))
    for x, y in zip(*found, strict=True):
        assert (x - y).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_does_not_go_with_the_batch(dtype: torch.dtype) -> None:
    """Beside the logits: a few chunks of float32 rows, however many rows there are.

    Their gradient takes the logits' place.
    """
    words, chunk = 4096, 32

    def extra(rows: int) -> int:
        # not a leaf: it may be overwritten
        logits = torch.zeros(rows, words, dtype=dtype).requires_grad_() * 1
        targets = torch.zeros(rows, dtype=torch.int64)

        def both_ways() -> None:
            got = compute_log_probs_from_logits(
                logits, targets, chunk_size=chunk, overwrite_logits=True
            )
            assert got.entropy is not None
            torch.autograd.grad((got.log_probs + got.entropy).sum(), logits)

        return peak_bytes(both_ways)

    few, many = extra(256), extra(2048)
    assert few < 6 * chunk * words * 4
    assert many - few < (2048 - 256) * 64  # some numbers a row, no vocabulary


def test_extreme_logits_stay_finite() -> None:
    got = compute_log_probs_from_logits(torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([1]))
    assert got.log_probs.item() == pytest.approx(-2e4)
    assert got.entropy is not None and got.entropy.item() == pytest.approx(0.0, abs=1e-6)


def test_no_trained_tokens_give_no_log_probs_but_a_graph() -> None:
    logits = torch.zeros(0, V, requires_grad=True)
    got = compute_log_probs_from_logits(logits, torch.zeros(0, dtype=torch.int64))
    got.log_probs.sum().backward()
    assert got.log_probs.shape == (0,) and logits.grad is not None


@pytest.mark.parametrize("eps_high", [None, 0.28])
def test_policy_loss(generator: torch.Generator, eps_high: float | None) -> None:
    new = torch.randn(50, generator=generator) * 0.3 - 1
    old = new + torch.randn(50, generator=generator) * 0.3
    advantages = torch.randn(50, generator=generator)
    got = compute_policy_loss(new, old, advantages, eps_clip=0.2, eps_clip_high=eps_high)
    num_clipped = 0
    for i in range(50):
        ratio = math.exp(new[i].double() - old[i].double())
        bounded = min(max(ratio, 0.8), 1 + (eps_high or 0.2))
        plain, clipped = -ratio * advantages[i].item(), -bounded * advantages[i].item()
        assert got.ratio[i].item() == pytest.approx(ratio, rel=1e-5)
        assert got.loss[i].item() == pytest.approx(max(plain, clipped), rel=1e-5)
        assert bool(got.clipped[i]) == (clipped > plain + 1e-9)
        num_clipped += clipped > plain + 1e-9
    assert 0 < num_clipped < 50


def test_clipped_tokens_have_no_gradient() -> None:
    new = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    # the first two are beyond the bound in the favoured direction
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0])
    compute_policy_loss(new, torch.zeros(4), advantages, eps_clip=0.2).loss.sum().backward()
    assert new.grad is not None
    assert new.grad[:2].tolist() == [0.0, 0.0]
    assert new.grad[2:].abs().min() > 0


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "low_var_kl"])
def test_approx_kl(generator: torch.Generator, kind: str) -> None:
    p, ref = torch.randn(40, generator=generator) * 3, torch.randn(40, generator=generator) * 3
    got = compute_approx_kl(p, ref, kind)  # type: ignore[arg-type]
    for i in range(40):
        x = p[i].double().item() - ref[i].double().item()
        k3 = math.exp(-x) - 1 + x
        want = {"k1": x, "k2": x * x / 2, "k3": k3, "low_var_kl": min(max(k3, -10.0), 10.0)}[kind]
        assert got[i].item() == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_kl_estimates_are_unbiased() -> None:
    p, q = (
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64),
    )
    true = (p * (p / q).log()).sum()
    for kind in ("k1", "k3"):
        assert (p * compute_approx_kl(p.log(), q.log(), kind)).sum() == pytest.approx(true)  # type: ignore[arg-type]


def test_unknown_kl_is_refused() -> None:
    with pytest.raises(ValueError, match="k4"):
        compute_approx_kl(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]


def test_tis_weights(generator: torch.Generator) -> None:
    old, rollout = torch.randn(60, generator=generator), torch.randn(60, generator=generator)
    got = compute_tis_weights(old.requires_grad_(), rollout, clip=2.0, clip_low=0.5)
    for i in range(60):
        raw = math.exp(old[i].double().item() - rollout[i].double().item())
        assert got.raw[i].item() == pytest.approx(raw, rel=1e-5)
        assert got.weights[i].item() == pytest.approx(min(max(raw, 0.5), 2.0), rel=1e-5)
        assert bool(got.clipped[i]) == (raw > 2.0 or raw < 0.5)
    assert not got.weights.requires_grad


def test_ess_fraction() -> None:
    w = torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64)
    got = compute_ess_fraction(w.sum(), w.square().sum(), torch.tensor(3.0))
    assert got.item() == pytest.approx(36 / (3 * 18))
    assert (
        compute_ess_fraction(torch.tensor(5.0), torch.tensor(5.0), torch.tensor(5.0)).item() == 1.0
    )


def test_reducers(generator: torch.Generator) -> None:
    counts = torch.tensor([3, 0, 1, 4])
    values = torch.randn(8, generator=generator)
    flat, at, want = values.double().tolist(), 0, 0.0
    for n in counts.tolist():
        want += sum(flat[at : at + n]) / n if n else 0.0
        at += n
    assert sum_of_sample_mean(values, counts).item() == pytest.approx(want, abs=1e-6)
    assert sum_of_tokens(values, counts).item() == pytest.approx(sum(flat), abs=1e-6)
    assert token_weights(counts, per_token=True).tolist() == [1.0] * 8
    with pytest.raises(ValueError, match="8"):
        sum_of_tokens(values[:7], counts)


def test_sft_loss() -> None:
    assert compute_sft_loss(torch.tensor([-0.5, -2.0])).tolist() == [0.5, 2.0]
