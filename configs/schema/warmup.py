"""The supervised warm-up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupConfig:
    """Supervised warm-up through the same learner, before the first rollout (0 steps: none)."""

    sft_steps: int = 0  # how many supervised optimizer steps come before the first rollout
    sft_batch_size: int = 64  # how many pairs of prompt and label make such a step
    sft_lr: float = 1e-3  # the learning rate of these steps
    # lets the learning rate fall linearly towards 0 over the last so many of them
    sft_decay_steps: int = 0
    # where the pairs come from, in the forms of --prompt-data; by default --prompt-data with
    # another seed
    sft_data: str | None = None
