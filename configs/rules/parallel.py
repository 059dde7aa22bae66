"""Rules about how the learner's model is split over ranks, and about the schedules of its
optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from configs.schema import OPTIMIZER_DEFAULTS, Config


def parallelism(config: Config) -> Iterator[str]:
    """What Megatron would refuse only after the ranks have started, or not at all."""
    given = config.megatron
    tensor, pipeline = (
        _size(given, "tensor_model_parallel_size"),
        _size(given, "pipeline_model_parallel_size"),
    )
    expert, virtual = (
        _size(given, "expert_model_parallel_size"),
        given.get("virtual_pipeline_model_parallel_size"),
    )
    each = config.optim.num_layers_per_virtual_pipeline_stage
    if virtual and each:
        yield (
            f"--virtual-pipeline-model-parallel-size {virtual} and"
            f" --num-layers-per-virtual-pipeline-stage {each} say the same: give one"
        )
    asked = (
        f"--virtual-pipeline-model-parallel-size {virtual}"
        if virtual
        else f"--num-layers-per-virtual-pipeline-stage {each}"
    )
    if (virtual or each) and pipeline == 1:
        yield (
            f"{asked} without --pipeline-model-parallel-size: virtual stages take turns on pipeline"
            " ranks. Give 2, say, or drop it"
        )
    if virtual or each:
        yield from _virtual(config, asked, pipeline)
    within = pipeline * expert * (_size(given, "expert_tensor_parallel_size", tensor))
    if config.num_learner_ranks % within:
        yield (
            f"{config.num_learner_ranks} learner ranks (--actor-num-nodes x"
            f" --actor-num-gpus-per-node) are no multiple of the {within} that"
            f" --pipeline-model-parallel-size {pipeline} x --expert-model-parallel-size {expert} x"
            f" --expert-tensor-parallel-size {within // pipeline // expert} take together"
        )
    if given.get("moe_token_dispatcher_type") == "allgather":
        yield (
            "--moe-token-dispatcher-type allgather: it wants equally many tokens on all ranks, and"
            " packed micro-batches differ. Use alltoall (or flex with DeepEP, on GPU)"
        )


def _virtual(config: Config, asked: str, pipeline: int) -> Iterator[str]:
    if config.megatron.get("overlap_p2p_comm") and config.megatron.get("batch_p2p_comm"):
        yield "--overlap-p2p-comm with --batch-p2p-comm: a batch of sends cannot overlap. Drop one"
    per_step = config.samples_per_step
    needed = pipeline * max(1, config.data_parallel_size)
    if per_step < needed and not config.run.mock:
        yield (
            f"{asked}: every data-parallel rank needs at least {pipeline} samples"
            f" (--pipeline-model-parallel-size) an optimizer step, one a micro-batch: {needed} in"
            f" all, got {per_step}. Raise --rollout-batch-size or --global-batch-size"
        )


def schedule(config: Config) -> Iterator[str]:
    """The learning rate's and the weight decay's schedule: Megatron's own checks are asserts
    without a word."""
    o = config.optim
    if o.lr_warmup_fraction is not None and o.lr_warmup_iters:
        yield (
            f"--lr-warmup-fraction {o.lr_warmup_fraction} and --lr-warmup-iters {o.lr_warmup_iters}"
            " both say how long: give one"
        )
    if (o.lr_decay_style == "WSD") != (o.lr_wsd_decay_iters is not None):
        yield (
            "--lr-decay-style WSD without --lr-wsd-decay-iters: it does not say when the decay"
            " begins. Give its optimizer steps, 10% of the run, say"
            if o.lr_decay_style == "WSD"
            else (
                f"--lr-wsd-decay-iters {o.lr_wsd_decay_iters} with --lr-decay-style"
                f" {o.lr_decay_style}: only WSD has such a phase. Drop it"
            )
        )
    if o.lr_wsd_decay_iters and o.lr_decay_iters and o.lr_wsd_decay_iters > o.lr_decay_iters:
        yield (
            f"--lr-wsd-decay-iters {o.lr_wsd_decay_iters} is above --lr-decay-iters"
            f" {o.lr_decay_iters}, whose end it is: lower it"
        )
    peak, low = (
        float(config.megatron.get(name, OPTIMIZER_DEFAULTS[name]) or 0.0)
        for name in ("lr", "min_lr")
    )
    if o.lr_warmup_init > peak:
        yield (
            f"--lr-warmup-init {o.lr_warmup_init:g} is above --lr {peak:g}: the warm-up rises to"
            " that"
        )
    if low > peak:
        yield f"--min-lr {low:g} is above --lr {peak:g}: the decay falls to that"
    start, end, style = o.start_weight_decay, o.end_weight_decay, o.weight_decay_incr_style
    if style == "constant" and (start is not None or end is not None):
        yield (
            f"{'--start-weight-decay' if start is not None else '--end-weight-decay'}"
            f" {start if start is not None else end} with --weight-decay-incr-style constant:"
            " nothing would change. Use --weight-decay, or --weight-decay-incr-style linear"
        )
    if style != "constant":
        if start is None or end is None:
            yield (
                f"--weight-decay-incr-style {style} needs --start-weight-decay and"
                " --end-weight-decay"
            )
        elif end < start:
            yield (
                f"--end-weight-decay {end:g} is below --start-weight-decay {start:g}: Megatron's"
                " schedule only rises"
            )


def _size(given: Any, name: str, default: int = 1) -> int:
    return max(1, int(given.get(name) or default))
