"""The learning rate as a function of the optimizer steps taken: linear warm-up, then constant, linear or cosine decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from configs.schema import OptimConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """`rate(n)` is the learning rate of the step after `n` steps. The numbers are those of Megatron-core's OptimizerParamScheduler."""

    max_lr: float
    min_lr: float
    warmup_steps: int
    decay_steps: int
    style: str  # constant, linear, cosine

    def rate(self, num_steps: int) -> float:
        if self.warmup_steps > 0 and num_steps <= self.warmup_steps:
            return self.max_lr * num_steps / self.warmup_steps
        if self.style == "constant":
            return self.max_lr
        if num_steps > self.decay_steps:
            return self.min_lr
        done = (num_steps - self.warmup_steps) / (self.decay_steps - self.warmup_steps)
        left = 1.0 - done if self.style == "linear" else 0.5 * (math.cos(math.pi * done) + 1.0)
        return self.min_lr + left * (self.max_lr - self.min_lr)


def make_schedule(optim: OptimConfig, *, lr: float, min_lr: float, num_steps: int) -> Schedule:
    """Counted in optimizer steps, `num_steps` in the whole run. Raises ConfigError for a warm-up that leaves no time to decay."""
    decay = optim.lr_decay_iters or max(num_steps, optim.lr_warmup_iters + 1)
    if optim.lr_warmup_iters >= decay:
        raise ConfigError(f"--lr-warmup-iters {optim.lr_warmup_iters} must be below --lr-decay-iters {decay}")
    return Schedule(max_lr=lr, min_lr=min_lr, warmup_steps=optim.lr_warmup_iters, decay_steps=decay, style=optim.lr_decay_style)
