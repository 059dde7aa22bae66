"""--train-backend fsdp: Megatron's optimizer flags are taken, the rest of its flags refused by
name; the schedule is Megatron's."""

from __future__ import annotations

import pytest

from configs.rules.backend import backend
from configs.schema import OPTIMIZER_DEFAULTS, Config, ModelConfig, OptimConfig
from pipeline.core.errors import ConfigError
from stages.learn.schedule import make_schedule


def problems(**megatron: object) -> list[str]:
    return list(backend(Config(model=ModelConfig(train_backend="fsdp"), megatron=megatron)))


def test_flags_that_mean_the_same_are_taken() -> None:
    assert not problems(**dict.fromkeys(OPTIMIZER_DEFAULTS, 0.5), tensor_model_parallel_size=1)


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("tensor_model_parallel_size", 2, "--actor-num-gpus-per-node"),
        ("recompute_granularity", "full", "--gradient-checkpointing"),
        ("bf16", True, "--dtype bfloat16"),
        ("num_layers", 3, "Drop it"),
    ],
)
def test_other_megatron_flags_are_refused_by_name(name: str, value: object, fix: str) -> None:
    (said,) = problems(**{name: value})
    assert (
        f"--{name.replace('_', '-')} {value}" in said
        and fix in said
        and "--train-backend megatron" in said
    )


@pytest.mark.parametrize("style", ["constant", "linear", "cosine"])
def test_schedule(style: str) -> None:
    """Two steps of warm-up from 0, then down to the minimum at step 6, half-way at 4, and no
    further."""
    optim = OptimConfig(lr_decay_style=style, lr_warmup_iters=2, lr_decay_iters=6)  # type: ignore[arg-type]
    rates = [make_schedule(optim, lr=1.0, min_lr=0.2, num_steps=100).rate(n) for n in range(9)]
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[4] == pytest.approx(1.0 if style == "constant" else 0.6)
    assert rates[6:] == pytest.approx([1.0 if style == "constant" else 0.2] * 3)
    assert rates == sorted(rates[:3]) + sorted(rates[3:], reverse=True)


def test_a_warm_up_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="--lr-warmup-iters 9 must be below --lr-decay-iters 9"):
        make_schedule(
            OptimConfig(lr_warmup_iters=9, lr_decay_iters=9), lr=1.0, min_lr=0.0, num_steps=3
        )
