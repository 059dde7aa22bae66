"""Rules about parallel layouts and schedules: each broken on its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from configs.command_line.loader import load_config
from configs.rules.validate import validate
from configs.schema import ClusterConfig, Config, OptimConfig, RolloutConfig
from pipeline.core.errors import ConfigError

RANKS = ClusterConfig(actor_num_gpus_per_node=4)


def config(
    optim: OptimConfig | None = None,
    rollout: RolloutConfig | None = None,
    *,
    mock: bool = True,
    **megatron: Any,
) -> Config:
    run = dataclasses.replace(load_config(["--mock"]).run, mock=mock)
    return Config(
        run=run,
        megatron=megatron,
        cluster=RANKS,
        optim=optim or OptimConfig(),
        rollout=rollout or RolloutConfig(),
    )


GOOD: list[Any] = [
    config(tensor_model_parallel_size=2, sequence_parallel="true", pipeline_model_parallel_size=2),
    config(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2),
    config(OptimConfig(num_layers_per_virtual_pipeline_stage=1), pipeline_model_parallel_size=4),
    config(context_parallel_size=4),
    config(
        expert_model_parallel_size=2, expert_tensor_parallel_size=1, tensor_model_parallel_size=4
    ),
    config(
        OptimConfig(
            lr_decay_style="WSD",
            lr_wsd_decay_iters=3,
            lr_decay_iters=10,
            lr_warmup_fraction=0.1,
            lr_warmup_init=1e-7,
        )
    ),
    config(
        OptimConfig(start_weight_decay=0.0, end_weight_decay=0.1, weight_decay_incr_style="cosine")
    ),
    config(
        OptimConfig(lr_decay_style="inverse-square-root", lr_warmup_iters=2), lr=1e-5, min_lr=1e-6
    ),
]

BAD: list[tuple[Any, str]] = [
    (
        config(virtual_pipeline_model_parallel_size=2),
        "--virtual-pipeline-model-parallel-size 2 without --pipeline-model-parallel-size",
    ),
    (
        config(OptimConfig(num_layers_per_virtual_pipeline_stage=2)),
        "--num-layers-per-virtual-pipeline-stage 2 without --pipeline",
    ),
    (
        config(
            OptimConfig(num_layers_per_virtual_pipeline_stage=2),
            pipeline_model_parallel_size=2,
            virtual_pipeline_model_parallel_size=2,
        ),
        "give one",
    ),
    (
        config(
            pipeline_model_parallel_size=2,
            virtual_pipeline_model_parallel_size=2,
            overlap_p2p_comm=True,
            batch_p2p_comm=True,
        ),
        "--overlap-p2p-comm with --batch-p2p-comm",
    ),
    (
        config(
            rollout=RolloutConfig(rollout_batch_size=1, n_samples_per_prompt=3),
            mock=False,
            pipeline_model_parallel_size=2,
            virtual_pipeline_model_parallel_size=2,
        ),
        "needs at least 2 samples.*4 in all, got 3",
    ),
    (config(expert_model_parallel_size=3), "--expert-model-parallel-size 3"),
    (
        config(moe_token_dispatcher_type="allgather"),
        "--moe-token-dispatcher-type allgather.*alltoall",
    ),
    (
        config(OptimConfig(lr_warmup_fraction=0.1, lr_warmup_iters=3)),
        "--lr-warmup-fraction 0.1 and --lr-warmup-iters 3",
    ),
    (config(OptimConfig(lr_warmup_fraction=1.0)), "--lr-warmup-fraction 1.0"),
    (
        config(OptimConfig(lr_decay_style="WSD")),
        "--lr-decay-style WSD without --lr-wsd-decay-iters",
    ),
    (
        config(OptimConfig(lr_wsd_decay_iters=3)),
        "--lr-wsd-decay-iters 3 with --lr-decay-style constant",
    ),
    (
        config(OptimConfig(lr_decay_style="WSD", lr_wsd_decay_iters=30, lr_decay_iters=10)),
        "--lr-wsd-decay-iters 30 is above",
    ),
    (
        config(OptimConfig(lr_warmup_init=1e-3), lr=1e-4),
        "--lr-warmup-init 0.001 is above --lr 0.0001",
    ),
    (config(lr=1e-6, min_lr=1e-5), "--min-lr 1e-05 is above --lr 1e-06"),
    (
        config(OptimConfig(start_weight_decay=0.1)),
        "--start-weight-decay 0.1 with --weight-decay-incr-style constant",
    ),
    (
        config(OptimConfig(weight_decay_incr_style="linear", start_weight_decay=0.1)),
        "needs --start-weight-decay and --end-weight-decay",
    ),
    (
        config(
            OptimConfig(
                weight_decay_incr_style="linear", start_weight_decay=0.1, end_weight_decay=0.01
            )
        ),
        "--end-weight-decay 0.01 is below",
    ),
]


@pytest.mark.parametrize("good", GOOD)
def test_accepted(good: Config) -> None:
    validate(good)


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_refused(bad: Config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(bad)
