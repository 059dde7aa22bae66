"""The range of each flag's own value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from configs.flags import NEVER, own_flags, words_of
from configs.schema import Config
from sandbox.limits import LEAST_MEMORY_BYTES

_AT_LEAST_1 = (
    "num_rollout",
    "num_epoch",
    "rollout_batch_size",
    "n_samples_per_prompt",
    "rollout_max_response_len",
    "rollout_max_prompt_len",
    "rollout_max_context_len",
    "max_turns",
    "tool_max_output_tokens",
    "agent_concurrency",
    "reward_num_workers",
    "judge_concurrency",
    "global_batch_size",
    "num_steps_per_rollout",
    "max_tokens_per_gpu",
    "update_weights_interval",
    "buffer_max_bytes",
    "actor_num_nodes",
    "actor_num_gpus_per_node",
    "rollout_num_gpus",
    "num_gpus_per_node",
    "mock_max_running_requests",
    "rollout_num_gpus_per_engine",
    "sglang_server_concurrency",
    "cpu_threads_per_engine",
    "cpu_threads_per_actor",
    "update_weight_buffer_size",
    "lr_decay_iters",
    "sft_batch_size",
    "n_samples_per_eval_prompt",
    "eval_max_response_len",
    "eval_max_prompt_len",
    "eval_max_context_len",
    "eval_max_prompts",
    "max_times_sampled",
    "samples_per_insert",
    "min_size_to_sample",
    "over_sampling_batch_size",
    "micro_batch_size",
    "log_probs_max_tokens_per_gpu",
    "lr_wsd_decay_iters",
    "num_layers_per_virtual_pipeline_stage",
)


_AT_LEAST_0 = (
    "push_staging_bytes",
    "judge_cache_size",
    "log_samples",
    "seed",
    "rollout_seed",
    "generate_max_retries",
    "group_max_retries",
    "async_buffer_size",
    "max_staleness",
    "keep_last_rollouts",
    "engine_restarts",
    "num_rollout_workers",
    "rollout_worker_restarts",
    "learner_restarts",
    "lr_warmup_iters",
    "sft_steps",
    "sft_decay_steps",
    "entropy_coef",
    "tis_clip_low",
    "eval_temperature",
    "eval_min_new_tokens",
    "mock_length_sigma",
    "buffer_priority_exponent",
    "mock_seconds_per_token",
    "mock_seconds_per_running_request",
    "mock_step_seconds",
    "mock_push_seconds",
    "staleness_clip_decay",
    "correction_kl_tau",
    "vespo_k_pos",
    "vespo_k_neg",
    "kl_loss_coef",
    "kl_coef",
    "correction_low",
    "opsm_delta",
    "critic_lr_warmup_iters",
    "num_critic_only_steps",
    "opd_kl_coef",
    "lr_warmup_init",
    "start_weight_decay",
    "end_weight_decay",
)


_ABOVE_0 = (
    "rollout_temperature",
    "generate_timeout_seconds",
    "tool_timeout_seconds",
    "environment_timeout_seconds",
    "sandbox_seconds",
    "episode_timeout_seconds",
    "agent_timeout",
    "eval_episode_timeout_seconds",
    "reward_timeout_seconds",
    "engine_start_timeout_seconds",
    "eps_clip",
    "eps_clip_high",
    "tis_clip",
    "sapo_tau_pos",
    "sapo_tau_neg",
    "vespo_lambda_pos",
    "vespo_lambda_neg",
    "sft_lr",
    "mock_length_mean",
    "correction_high",
    "true_on_policy_tolerance",
    "critic_lr",
    "value_clip",
)


RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{name: (lambda v: v >= 1, "at least 1") for name in _AT_LEAST_1},
    **{name: (lambda v: v >= 0, "at least 0") for name in _AT_LEAST_0},
    **{name: (lambda v: v > 0, "above 0") for name in _ABOVE_0},
    **{name: (lambda v: v >= 0, "at least 1, or 0 for never") for name in NEVER},
    "rollout_temperature": (
        lambda v: v > 0,
        (
            "above 0: log-probs of greedy decoding are not defined (for evaluation:"
            " --eval-temperature 0)"
        ),
    ),
    **dict.fromkeys(
        ("rollout_top_p", "eval_top_p"), (lambda v: 0 < v <= 1, "a probability above 0, at most 1")
    ),
    **dict.fromkeys(
        ("rollout_top_k", "eval_top_k"), (lambda v: v == -1 or v >= 1, "-1 (all) or at least 1")
    ),
    "sglang_router_port": (lambda v: 1 <= v <= 65535, "a port between 1 and 65535"),
    "lr_warmup_fraction": (
        lambda v: 0 <= v < 1,
        "a share of --lr-decay-iters: at least 0, below 1",
    ),
    "push_wave_fraction": (lambda v: 0 < v <= 1, "a share of the engines above 0, at most 1"),
    "sandbox_memory_bytes": (
        lambda v: v >= LEAST_MEMORY_BYTES,
        f"at least {LEAST_MEMORY_BYTES} (64 MiB): Python alone takes half of it",
    ),
    "gamma": (lambda v: 0 < v <= 1, "a discount above 0, at most 1"),
    "lambd": (lambda v: 0 <= v <= 1, "between 0 (one step) and 1 (the whole return)"),
    "mock_failure_rate": (lambda v: 0 <= v <= 1, "a probability between 0 and 1"),
    "eps_clip_c": (
        lambda v: v > 1,
        "above 1: it bounds the ratio of tokens with a negative advantage, e.g. 3",
    ),
    "correction_veto_threshold": (lambda v: 0 < v < 1, "a ratio above 0 and below 1, e.g. 1e-4"),
    "log_probs_chunk_size": (
        lambda v: v == -1 or v >= 1,
        "-1 (a whole micro-batch) or at least 1 row",
    ),
    "eps_clip": (
        lambda v: 0 < v <= 1,
        "above 0, at most 1 (no lower bound): the ratio is clipped to [1 - eps-clip, 1 +"
        " eps-clip-high]",
    ),
}


def ranges(config: Config) -> Iterator[str]:
    for flag in own_flags().values():
        value = getattr(getattr(config, flag.section), flag.field)
        ok, expected = RANGES.get(flag.field, (lambda _: True, ""))
        if value is not None and not ok(value):
            yield f"--{flag.name} {' '.join(words_of(value))}: expected {expected}"
