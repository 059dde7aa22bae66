"""Learning rate and weight decay as functions of the optimizer steps taken. The numbers are those
of Megatron-core's OptimizerParamScheduler, which the Megatron learner uses itself; the WSD phases
are of Hu et al. 2024 (MiniCPM), arXiv:2404.06395."""

from __future__ import annotations

import math
from dataclasses import dataclass

from configs.schema import OptimConfig
from pipeline.core.errors import ConfigError


def warmup_and_decay(optim: OptimConfig, num_steps: int) -> tuple[int, int]:
    """(steps of the warm-up, steps of the whole schedule) in a run of `num_steps` optimizer steps.
    Raises ConfigError when the phases do not fit."""
    decay = optim.lr_decay_iters or max(num_steps, optim.lr_warmup_iters + 1)
    warmup = (
        optim.lr_warmup_iters
        if optim.lr_warmup_fraction is None
        else int(optim.lr_warmup_fraction * decay)
    )
    if warmup >= decay:
        raise ConfigError(f"--lr-warmup-iters {warmup} must be below --lr-decay-iters {decay}")
    if (optim.lr_wsd_decay_iters or 0) > decay:
        raise ConfigError(
            f"--lr-wsd-decay-iters {optim.lr_wsd_decay_iters} is above the {decay} steps of the"
            " schedule, whose end it is"
        )
    return warmup, decay


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Learning rate and weight decay of the step after n steps."""

    optim: OptimConfig
    max_lr: float
    min_lr: float
    constant_weight_decay: float
    warmup_steps: int
    decay_steps: int

    def rate(self, n: int) -> float:
        """The learning rate."""
        o = self.optim
        if self.warmup_steps > 0 and n <= self.warmup_steps:
            return o.lr_warmup_init + (self.max_lr - o.lr_warmup_init) * n / self.warmup_steps
        if o.lr_decay_style == "constant":
            return self.max_lr
        if n > self.decay_steps:
            return self.min_lr
        if o.lr_decay_style == "inverse-square-root":
            return max(self.min_lr, self.max_lr * math.sqrt(max(self.warmup_steps, 1) / max(n, 1)))
        done = (n - self.warmup_steps) / (self.decay_steps - self.warmup_steps)
        left = (
            _wsd_left(o, n, self.decay_steps)
            if o.lr_decay_style == "WSD"
            else _left(o.lr_decay_style, done)
        )
        return self.min_lr + left * (self.max_lr - self.min_lr)

    def weight_decay(self, n: int) -> float:
        """The decay of those weights that are decayed at all."""
        o = self.optim
        if o.weight_decay_incr_style == "constant":
            return self.constant_weight_decay
        # or the flags were refused
        assert o.start_weight_decay is not None and o.end_weight_decay is not None
        if n > self.decay_steps:
            return o.end_weight_decay
        risen = 1.0 - _left(o.weight_decay_incr_style, n / self.decay_steps)
        return o.start_weight_decay + risen * (o.end_weight_decay - o.start_weight_decay)


def _wsd_left(optim: OptimConfig, n: int, decay_steps: int) -> float:
    assert optim.lr_wsd_decay_iters  # or the flags were refused
    begun = n - (decay_steps - optim.lr_wsd_decay_iters)
    return 1.0 if begun <= 0 else _left(optim.lr_wsd_decay_style, begun / optim.lr_wsd_decay_iters)


def _left(style: str, done: float) -> float:
    """What is left of a fall from 1 when a share `done` of its steps is."""
    match style:
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (math.cos(math.pi * done) + 1.0)
        case "exponential":
            return 2.0 * 0.5**done - 1.0
        case "minus_sqrt":
            return 1.0 - math.sqrt(done)
    raise AssertionError(style)


def make_schedule(
    optim: OptimConfig, *, lr: float, min_lr: float, num_steps: int, weight_decay: float = 0.0
) -> Schedule:
    """The schedule that the flags ask for, counted in optimizer steps; the whole run has
    `num_steps`.

    Raises ConfigError for phases that do not fit."""
    warmup, decay = warmup_and_decay(optim, num_steps)
    return Schedule(
        optim=optim,
        max_lr=lr,
        min_lr=min_lr,
        constant_weight_decay=weight_decay,
        warmup_steps=warmup,
        decay_steps=decay,
    )
