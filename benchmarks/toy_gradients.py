"""Bias and variance of every off-policy correction's gradient against the exact on-policy gradient,
on an MDP small enough to enumerate.

A policy of one softmax row a prefix writes all sequences of 4 words out of 3 (81 of them); each has
a reward. The policy learns by exact gradient ascent, and its older selves are the behaviour
policies: staleness s is s updates ago. The gradient of the learner's own objective
(stages/learn/objective.py, first optimizer step of a rollout) is taken for every sequence, so that
its expectation and variance under the behaviour policy are sums, not estimates. Two corrections
look at the whole batch (m2po, normalised weights): theirs are over 2000 drawn batches of 64.

    python benchmarks/toy_gradients.py
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.common import keep
from configs.corrections import PRESETS, correction_of
from configs.schema import AlgorithmConfig
from stages.learn.corrections import batch_evidence, batch_statistics
from stages.learn.losses import TokenLogProbs
from stages.learn.objective import policy_objective
from stages.learn.outcome import ObjectiveExtras

WORDS, LENGTH, BATCH, NUM_BATCHES = 3, 4, 64, 2000
STALENESS = (1, 4, 16)
LEARNING_RATE, UPDATES = 1.5, 24

CONFIGS: dict[str, dict[str, Any]] = {
    "none": {},
    "sequence IS, no bound": {
        "use_tis": True,
        "tis_level": "sequence",
        "tis_mode": "truncate",
        "tis_clip": 1e9,
    },
    "token IS, no bound": {"use_tis": True, "tis_mode": "truncate", "tis_clip": 1e9},
    **{name: {"off_policy_correction": name} for name in PRESETS if name != "none"},
    "seq-tis, normalised": {"off_policy_correction": "seq-tis", "correction_batch_normalize": True},
    "rollout log-probs (PPO clip)": {"use_rollout_logprobs": True},
    "gspo, rollout log-probs": {"advantage_estimator": "gspo", "use_rollout_logprobs": True},
    "cispo, rollout log-probs": {
        "advantage_estimator": "cispo",
        "use_rollout_logprobs": True,
        "eps_clip": 0.999,
        "eps_clip_high": 4.0,
    },
}


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """`TrainedTokens` of some sequences."""

    targets: Tensor
    advantages: Tensor
    rollout_log_probs: Tensor
    token_counts: Tensor
    sample_lengths: Tensor
    staleness: Tensor
    teacher_log_probs: None = None
    token_staleness: None = None

    def weights_of_samples(self, *, per_token: bool) -> Tensor:
        return torch.ones(len(self.token_counts))


class World:
    """All sequences, the prefix (row of logits) of each of their words, and their rewards."""

    def __init__(self, seed: int) -> None:
        self.sequences = torch.tensor(list(itertools.product(range(WORDS), repeat=LENGTH)))
        starts = torch.tensor([sum(WORDS**i for i in range(t)) for t in range(LENGTH)])
        powers = torch.tensor(
            [[WORDS ** (t - 1 - i) if i < t else 0 for i in range(LENGTH)] for t in range(LENGTH)]
        )
        self.prefixes = starts + self.sequences @ powers.T
        generator = torch.Generator().manual_seed(seed)
        self.rewards = (torch.rand(len(self.sequences), generator=generator) < 0.15).double()
        self.start = torch.randn(
            int(self.prefixes.max()) + 1, WORDS, generator=generator, dtype=torch.float64
        )

    def log_probs(self, logits: Tensor) -> Tensor:
        """[sequences, LENGTH]"""
        return torch.log_softmax(logits, -1)[self.prefixes, self.sequences]

    def value(self, logits: Tensor) -> Tensor:
        return (self.log_probs(logits).sum(-1).exp() * self.rewards).sum()

    def gradient(self, logits: Tensor) -> Tensor:
        x = logits.clone().requires_grad_()
        return torch.autograd.grad(self.value(x), x)[0]

    def history(self) -> list[Tensor]:
        """The policy after every update."""
        out = [self.start]
        for _ in range(UPDATES):
            out.append(out[-1] + LEARNING_RATE * self.gradient(out[-1]))
        return out


def gradient_of(
    world: World, logits: Tensor, behaviour: Tensor, chosen: Tensor, config: AlgorithmConfig
) -> Tensor:
    """The objective's ascent direction from the sequences `chosen` [n] (times LENGTH: of the sum
    over words, as the exact one)."""
    x = logits.clone().requires_grad_()
    now = world.log_probs(x)[chosen].flatten()
    advantages = (world.rewards - world.value(logits))[chosen].repeat_interleave(LENGTH)
    counts = torch.full((len(chosen),), LENGTH)
    rollout = world.log_probs(behaviour)[chosen].flatten()
    batch = Tokens(
        targets=world.sequences[chosen].flatten(),
        advantages=advantages,
        rollout_log_probs=rollout,
        token_counts=counts,
        sample_lengths=counts,
        staleness=0 * counts,
    )
    statistics = batch_statistics(
        correction_of(config),
        [batch_evidence(correction_of(config), now.detach(), rollout, advantages, counts)],
    )
    outcome = policy_objective(
        TokenLogProbs(now, 0 * now.detach()),
        None,
        batch,
        config,
        float(len(chosen)),
        ObjectiveExtras(statistics=statistics),
    )
    return -LENGTH * torch.autograd.grad(outcome.loss, x)[0].flatten()


def moments(
    world: World, logits: Tensor, behaviour: Tensor, config: AlgorithmConfig
) -> tuple[Tensor, float]:
    """(expected gradient, total variance of the mean over a batch of BATCH sequences) under the
    behaviour policy."""
    p = world.log_probs(behaviour).sum(-1).exp()
    if correction_of(config).needs_statistics:
        generator = torch.Generator().manual_seed(1)
        drawn = torch.multinomial(
            p, BATCH * NUM_BATCHES, replacement=True, generator=generator
        ).view(NUM_BATCHES, BATCH)
        g = torch.stack([gradient_of(world, logits, behaviour, chosen, config) for chosen in drawn])
        return g.mean(0), float(g.var(0).sum())
    g = torch.stack(
        [gradient_of(world, logits, behaviour, torch.tensor([i]), config) for i in range(len(p))]
    )
    mean = p @ g
    return mean, float((p @ (g - mean).square()).sum() / BATCH)


def measure(world: World) -> Iterator[dict[str, Any]]:
    history = world.history()
    logits = history[-1]
    exact = world.gradient(logits).flatten()
    size = float(exact.norm())
    for staleness in STALENESS:
        behaviour = history[-1 - staleness]
        p = world.log_probs(behaviour).sum(-1).exp()
        w = (world.log_probs(logits) - world.log_probs(behaviour)).sum(-1).exp()
        ess = float((p @ w) ** 2 / (p @ w.square()))
        for name, flags in CONFIGS.items():
            mean, variance = moments(world, logits, behaviour, AlgorithmConfig(**flags))
            bias = float((mean - exact).norm())
            yield {
                "correction": name,
                "staleness": staleness,
                "bias": bias / size,
                "std": variance**0.5 / size,
                "rmse": (bias**2 + variance) ** 0.5 / size,
                "cosine": float(torch.nn.functional.cosine_similarity(mean, exact, dim=0)),
                "sequence_ess_fraction": ess,
            }


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    rows = list(measure(World(seed=3)))
    ess = {r["staleness"]: r["sequence_ess_fraction"] for r in rows}
    print(
        f"bias / standard deviation at {BATCH} sequences / root mean square error, over the exact"
        " gradient's size"
    )
    print(
        "| correction | "
        + " | ".join(f"staleness {s} (ESS {ess[s]:.2f})" for s in STALENESS)
        + " |"
    )
    print("| --- |" + " --- |" * len(STALENESS))
    for name in CONFIGS:
        cells = [r for r in rows if r["correction"] == name]
        print(
            f"| {name} | "
            + " | ".join(f"{r['bias']:.3f} / {r['std']:.3f} / {r['rmse']:.3f}" for r in cells)
            + " |"
        )
    setting = {
        "words": WORDS,
        "length": LENGTH,
        "batch": BATCH,
        "drawn_batches": NUM_BATCHES,
        "lr": LEARNING_RATE,
        "updates": UPDATES,
    }
    keep("toy_gradients", {"setting": setting, "rows": rows})


if __name__ == "__main__":
    main()
