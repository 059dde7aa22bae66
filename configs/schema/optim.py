"""The optimizer and its schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DecayStyle = Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"]

# Megatron's optimizer flags that both learners know, with slime's lr and clipping; the rest is
# Megatron's.
OPTIMIZER_DEFAULTS: Mapping[str, float] = {
    "lr": 1e-6,
    "min_lr": 0.0,
    "weight_decay": 0.0,
    "clip_grad": 1.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_eps": 1e-8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """What slime names beside Megatron's own optimizer flags (--lr, --clip-grad, --adam-beta2 ...
    are Megatron's)."""

    # the schedule of the learning rate after the warm-up
    lr_decay_style: DecayStyle = "constant"
    lr_warmup_iters: int = 0  # how many optimizer steps the linear warm-up takes
    # how many optimizer steps the schedule spans; by default all of the run
    lr_decay_iters: int | None = None
    # the warm-up as a share of --lr-decay-iters, instead of --lr-warmup-iters
    lr_warmup_fraction: float | None = None
    lr_warmup_init: float = 0.0  # the learning rate from which the warm-up starts
    # the shape of WSD's last phase
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "exponential"
    # how many optimizer steps that phase takes at the end of --lr-decay-iters
    lr_wsd_decay_iters: int | None = None
    # the weight decay at the first step; by default --weight-decay
    start_weight_decay: float | None = None
    # the weight decay at the last of --lr-decay-iters; by default --weight-decay
    end_weight_decay: float | None = None
    # the way from the one weight decay to the other
    weight_decay_incr_style: Literal["constant", "linear", "cosine"] = "constant"
    # the other way to say --virtual-pipeline-model-parallel-size
    num_layers_per_virtual_pipeline_stage: int | None = None
