"""What --train-backend fsdp does not do, refused by name.

Its optimizer flags are Megatron's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from configs.schema import OPTIMIZER_DEFAULTS, Config

_PARALLEL_SIZES = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
)
_INSTEAD = {
    "recompute_granularity": "--gradient-checkpointing",
    "recompute_method": "--gradient-checkpointing",
    "bf16": "--dtype bfloat16",
    "use_distributed_optimizer": "nothing: FSDP shards weights, gradients and optimizer anyway",
}
# Flags of ours that only the Megatron learner has, as far as this version has them, by the value
# that asks for nothing.
_ONLY_MEGATRON: dict[str, dict[str, bool | None]] = {
    "algorithm": {"use_routing_replay": False, "use_rollout_routing_replay": False},
    "cluster": {"offload": False, "offload_train": False},
    "model": {
        "initial_megatron_checkpoint": None,
        "custom_megatron_init_path": None,
        "custom_model_provider_path": None,
        "custom_megatron_before_log_prob_hook_path": None,
        "custom_megatron_before_train_step_hook_path": None,
    },
    "run": {"async_save": False, "save_optim": True, "load_optim": True},
}


def media(config: Config) -> Iterator[str]:
    given = config.data.multimodal_keys
    if given is None:
        return
    try:
        keys = json.loads(given)
    except ValueError:
        keys = None
    if not isinstance(keys, dict) or list(keys) != ["image"] or not isinstance(keys["image"], str):
        yield (
            f"--multimodal-keys {given}: expected JSON with the column of the images, e.g."
            ' \'{"image": "images"}\' (no video, no audio)'
        )
        return
    if not config.data.apply_chat_template:
        yield (
            f"--multimodal-keys {given} without --apply-chat-template: the model's template says"
            " where images go. Add it"
        )
    if config.distill.use_opd:
        yield (
            f"--multimodal-keys {given} with --use-opd: the teacher would be asked without the"
            " images. Drop one"
        )
    if config.model.train_backend != "fsdp" and not config.run.debug_rollout_only:
        yield (
            f"--multimodal-keys {given} with --train-backend megatron: its models do not see. Use"
            " --train-backend fsdp"
        )
    if config.warmup.sft_steps:
        yield (
            f"--multimodal-keys {given} with --sft-steps {config.warmup.sft_steps}: the warm-up"
            " takes text only. Drop one"
        )


def backend(config: Config) -> Iterator[str]:
    if config.model.train_backend == "megatron":
        if config.model.gradient_checkpointing:
            yield (
                "--gradient-checkpointing is for --train-backend fsdp: with megatron say"
                " --recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
            )
        return
    for name, value in config.megatron.items():
        if name in OPTIMIZER_DEFAULTS or (name in _PARALLEL_SIZES and value in (1, None)):
            continue
        flag = f"--{name.replace('_', '-')} {value}"
        instead = f"Use {_INSTEAD[name]}, or" if name in _INSTEAD else "Drop it, or"
        if name in _PARALLEL_SIZES:
            instead = (
                "FSDP shards the model over all --actor-num-nodes x --actor-num-gpus-per-node ranks"
                " by itself: drop it, or"
            )
        yield (
            f"--train-backend fsdp does not know Megatron's {flag}. {instead} train with"
            " --train-backend megatron"
        )
    if config.algorithm.advantage_estimator == "ppo":
        yield (
            "--train-backend fsdp with --advantage-estimator ppo: it has no critic yet. Train with"
            " --train-backend megatron, or use an estimator without a critic (grpo, gspo, cispo,"
            " rloo, reinforce_plus_plus, dr_grpo, max_rl, opob)"
        )
    for section, names in _ONLY_MEGATRON.items():
        for name, nothing in names.items():
            value = getattr(getattr(config, section), name, nothing)
            if value not in (nothing, None):
                flag = f"--{'no-' if nothing is True else ''}{name.replace('_', '-')}"
                yield (
                    f"--train-backend fsdp does not know {flag}. Drop it, or train with"
                    " --train-backend megatron"
                )
