"""slime's names in `args` that are no flags here: what its functions read has a value, typed or
not.

Where this project has the thing under another name, its value; otherwise the value with which slime
leaves it out. A flag of ours, or one of Megatron's or SGLang's that is given, goes over these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from configs.schema.config import Config

# Left out: slime's value for "not asked for".
OFF: Mapping[str, Any] = {
    # cluster and weights
    "distributed_timeout_minutes": 10,
    "release_train": False,
    "update_weight_disk_dir": None,
    "update_weight_disk_keep_files": False,
    "update_weight_delta_encoding": "xor",
    "update_weight_delta_checksum": "xxh3-128",
    "custom_update_weight_post_write_path": None,
    "rollout_data_transport": "object-store",
    "http_proxy": None,
    "use_distributed_post": False,
    "rollout_health_check_interval": 30.0,
    "rollout_health_check_timeout": 30.0,
    "rollout_health_check_first_wait": 0,
    # model and learner
    "model_name": None,
    "megatron_config_path": None,
    "megatron_deepgemm_forward_layers": None,
    "megatron_deepgemm_forward_modules": None,
    "megatron_deepgemm_moe_forward_layers": None,
    "megatron_deepgemm_moe_forward_modules": None,
    "recompute_loss_function": False,
    "only_train_params_name_list": None,
    "freeze_params_name_list": None,
    "freeze_indexer": False,
    "allgather_cp": False,
    "qwen_gdn_backend": "fla",
    "keep_old_actor": False,
    "reset_optimizer_states": False,
    "use_stateless_adam": False,
    "enable_mtp_training": False,
    "mtp_num_layers": None,
    "mtp_loss_scaling_factor": 0.2,
    "padded_vocab_size": None,
    "data_pad_size_multiplier": 128,
    "qkv_format": "thd",
    "ref_ckpt_step": None,
    "opd_teacher_ckpt_step": None,
    # data, generation, evaluation
    "rollout_global_dataset": True,
    "partial_rollout": False,
    "start_rollout_id": 0,
    "eval_datasets": [],
    "rollout_buffer_url": None,
    "fetch_trajectory_retry_times": -1,
    "min_batch_collection_ratio": 1,
    "rollout_task_type": "math",
    "load_forge_rollout_data": None,
    # loss
    "compute_advantages_and_returns": True,
    # records
    "wandb_key": None,
    "wandb_random_suffix": False,
    "wandb_always_use_train_step": False,
    "log_multi_turn": False,
    "log_passrate": False,
    "log_reward_category": None,
    "log_correct_samples": False,
    "dump_details": None,
    "save_debug_train_data": None,
    "load_debug_rollout_data_subsample": None,
    "memory_snapshot_dir": ".",
    "memory_snapshot_num_steps": None,
    "memory_recorder": "torch",
    "record_memory_history": False,
    "profile_target": ["train_overall"],
    "ci_test": False,
    "ci_disable_kl_checker": False,
    "ci_train_rollout_logprob_abs_diff_threshold": 0.1,
    "ci_save_grad_norm": None,
    "ci_load_grad_norm": None,
    # what Megatron-LM and SGLang have without a word of the user
    "context_parallel_size": 1,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "expert_tensor_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "sequence_parallel": False,
    "fp16": False,
    "fp16_lm_cross_entropy": False,
    "moe_grouped_gemm": False,
    "moe_use_legacy_grouped_gemm": False,
    "use_rope_scaling": False,
    "sglang_dp_size": 1,
    "sglang_pp_size": 1,
    "sglang_ep_size": 1,
    "sglang_context_length": None,
    "sglang_speculative_algorithm": None,
    "sglang_model_routers": None,
}

# Megatron's names of a model's shape, and Hugging Face's in config.json.
SHAPE: Mapping[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers",),
    "hidden_size": ("hidden_size",),
    "ffn_hidden_size": ("intermediate_size",),
    "num_attention_heads": ("num_attention_heads",),
    "num_query_groups": ("num_key_value_heads",),
    "kv_channels": ("head_dim",),
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": ("max_position_embeddings",),
    "norm_epsilon": ("rms_norm_eps",),
    "num_experts": ("num_experts", "n_routed_experts", "num_local_experts"),
    "moe_router_topk": ("num_experts_per_tok",),
    "moe_ffn_hidden_size": ("moe_intermediate_size",),
}


def counterparts(config: Config) -> dict[str, Any]:
    """Things that have another name here."""
    a, cluster, distill = config.algorithm, config.cluster, config.distill
    return {
        "critic_num_nodes": cluster.actor_num_nodes,
        "critic_num_gpus_per_node": cluster.actor_num_gpus_per_node,
        "world_size": config.num_learner_ranks,
        "data_parallel_size": config.data_parallel_size,
        "distributed_backend": "gloo" if config.model.device == "cpu" else "nccl",
        "update_weight_transport": (
            "nccl" if cluster.weight_transport == "distributed" else "disk"
        ),
        "update_weight_mode": "delta" if cluster.weight_transport == "delta" else "full",
        "rollout_num_engines": config.num_engines,
        "sglang_router_policy": cluster.router_policy,
        "rollout_external": bool(cluster.rollout_external_engine_addrs),
        "sglang_tp_size": config.tensor_ranks_of_an_engine,
        "sglang_enable_deterministic_inference": config.seeds_requests,
        "no_save_optim": not config.run.save_optim,
        "use_critic": a.advantage_estimator == "ppo",
        "balance_by_flops": a.balance_data,
        "use_rollout_entropy": True,
        "opd_type": "sglang" if distill.use_opd else None,
        "bf16": config.model.dtype == "bfloat16",
    }


def shape_args(shape: Mapping[str, Any]) -> dict[str, Any]:
    """Megatron's names for what a model's config.json says; None for what it does not."""
    text = {**shape, **(shape.get("text_config") or {})}
    return {
        name: next((text[key] for key in keys if key in text), None) for name, keys in SHAPE.items()
    }


# Flags of ours that slime fills in where they are not given.
FILLED: Mapping[str, Callable[[Config], Any]] = {
    "global_batch_size": lambda config: config.samples_per_step,
    "over_sampling_batch_size": lambda config: config.rollout.rollout_batch_size,
    "eval_max_context_len": lambda config: config.rollout.rollout_max_context_len,
    "eval_reward_key": lambda config: config.reward.reward_key,
    "eps_clip_high": lambda config: config.algorithm.eps_clip,
    "num_gpus_per_node": lambda config: config.cluster.actor_num_gpus_per_node,
    "log_probs_max_tokens_per_gpu": lambda config: config.algorithm.max_tokens_per_gpu,
}
