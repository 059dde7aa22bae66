"""Trained tokens of made-up samples, and a model small enough to look through: a table of logits,
one row a context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CONTEXTS, WORDS = 6, 5


@dataclass(frozen=True, kw_only=True)
class FakeTokens:
    """`TrainedTokens`, with the context of every token, and what else its samples bring along."""

    contexts: Tensor
    targets: Tensor
    advantages: Tensor
    rollout_log_probs: Tensor
    token_counts: Tensor
    sample_lengths: Tensor
    staleness: Tensor
    old: Tensor
    ref: Tensor
    shares: Tensor
    mean_weights: Tensor
    teacher_log_probs: Tensor | None = None
    token_staleness: Tensor | None = None

    def weights_of_samples(self, *, per_token: bool) -> Tensor:
        return torch.ones_like(self.mean_weights) if per_token else self.mean_weights


@dataclass(frozen=True, kw_only=True)
class FakeSample:
    contexts: list[int]
    targets: list[int]
    advantage: float
    rollout_log_probs: list[float]
    old: list[float]
    ref: list[float]
    staleness: int
    weight: float = 1.0  # its share of its trajectory
    norm_length: int | None = None


def make_samples(lengths: Sequence[int], seed: int, spread: float) -> list[FakeSample]:
    """`spread`: standard deviation of the gaps between the policies, in nats; 0 is on-policy (every
    log-prob is the model's own)."""
    g = torch.Generator().manual_seed(seed)
    log_p = torch.log_softmax(make_model(seed), -1)
    samples = []
    for n in lengths:
        contexts, targets = (
            torch.randint(CONTEXTS, (n,), generator=g),
            torch.randint(WORDS, (n,), generator=g),
        )
        own = log_p[contexts, targets]
        old, rollout, ref = (own + spread * torch.randn(n, generator=g) for _ in range(3))
        samples.append(
            FakeSample(
                contexts=contexts.tolist(),
                targets=targets.tolist(),
                advantage=float(torch.randn((), generator=g)),
                rollout_log_probs=rollout.tolist(),
                old=old.tolist(),
                ref=ref.tolist(),
                staleness=int(torch.randint(10, (), generator=g)),
            )
        )
    return samples


def make_model(seed: int) -> Tensor:
    return torch.randn(CONTEXTS, WORDS, generator=torch.Generator().manual_seed(seed + 1))


def pack(samples: Sequence[FakeSample], dtype: torch.dtype = torch.float32) -> FakeTokens:
    def flat(name: str) -> Tensor:
        return torch.tensor([x for s in samples for x in getattr(s, name)], dtype=dtype)

    counts = [len(s.targets) for s in samples]
    return FakeTokens(
        contexts=flat("contexts").long(),
        targets=flat("targets").long(),
        advantages=torch.tensor([s.advantage for s in samples for _ in s.targets], dtype=dtype),
        rollout_log_probs=flat("rollout_log_probs"),
        token_counts=torch.tensor(counts),
        sample_lengths=torch.tensor(counts) + 3,
        staleness=torch.tensor([s.staleness for s in samples]),
        old=flat("old"),
        ref=flat("ref"),
        shares=torch.tensor([s.weight for s in samples], dtype=dtype),
        mean_weights=torch.tensor(
            [len(s.targets) / s.norm_length if s.norm_length else s.weight for s in samples],
            dtype=dtype,
        ),
    )
