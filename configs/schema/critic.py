"""The value model of PPO."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticConfig:
    """The value model of --advantage-estimator ppo.

    It lives on the learner's ranks, and is saved and restored with the policy.
    """

    critic_lr: float | None = None  # the critic's learning rate; by default --lr
    critic_lr_warmup_iters: int = 0  # how many optimizer steps the critic's linear warm-up takes
    # starts the critic from this Hugging Face folder or snapshot; by default from the policy's
    # weights
    critic_load: str | None = None
    value_clip: float = 0.2  # clips a step's values to this range about the values at consumption
    num_critic_only_steps: int = 0  # trains only the critic on the first so many rollouts
