"""What --train-backend fsdp does not do, refused by name. Its optimizer flags are Megatron's own."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import Config

OPTIMIZER_FLAGS = ("lr", "min_lr", "weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_grad")
_PARALLEL_SIZES = (
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size", "expert_model_parallel_size",
    "expert_tensor_parallel_size",
)  # fmt: skip
_INSTEAD = {
    "recompute_granularity": "--gradient-checkpointing",
    "recompute_method": "--gradient-checkpointing",
    "bf16": "--dtype bfloat16",
    "use_distributed_optimizer": "nothing: FSDP shards weights, gradients and optimizer anyway",
}
# Flags of ours that only the Megatron learner has, as far as this version has them.
_ONLY_MEGATRON = {
    "algorithm": ("use_routing_replay", "use_rollout_routing_replay"),
    "cluster": ("offload", "offload_train"),
    "run": ("async_save",),
    "model": ("initial_megatron_checkpoint",),
}


def backend(config: Config) -> Iterator[str]:
    if config.model.train_backend == "megatron":
        if config.model.gradient_checkpointing:
            yield (
                "--gradient-checkpointing is for --train-backend fsdp: with megatron say --recompute-granularity full --recompute-method "
                "uniform --recompute-num-layers 1"
            )
        return
    for name, value in config.megatron.items():
        if name in OPTIMIZER_FLAGS or (name in _PARALLEL_SIZES and value in (1, None)):
            continue
        flag = f"--{name.replace('_', '-')} {value}"
        instead = f"Use {_INSTEAD[name]}, or" if name in _INSTEAD else "Drop it, or"
        if name in _PARALLEL_SIZES:
            instead = "FSDP shards the model over all --actor-num-nodes x --actor-num-gpus-per-node ranks by itself: drop it, or"
        yield f"--train-backend fsdp does not know Megatron's {flag}. {instead} train with --train-backend megatron"
    if config.algorithm.advantage_estimator == "ppo":
        yield (
            "--train-backend fsdp with --advantage-estimator ppo: it has no critic yet. Train with --train-backend megatron, or use an "
            "estimator without a critic (grpo, gspo, cispo, rloo, reinforce_plus_plus, dr_grpo)"
        )
    for name in ("save_optim", "load_optim"):
        if not getattr(config.run, name):
            yield f"--train-backend fsdp does not know --no-{name.replace('_', '-')}. Drop it, or train with --train-backend megatron"
    for section, names in _ONLY_MEGATRON.items():
        for name in names:
            if getattr(getattr(config, section), name, None):
                yield f"--train-backend fsdp does not know --{name.replace('_', '-')}. Drop it, or train with --train-backend megatron"
