"""The user's own functions: the flag that names each, its default name, and how it is called.

Everything else that speaks of them (checks at load, the places that call them,
docs/custom-functions.md) reads it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from configs.hook import Hook
from pipeline.core.user_errors import name_errors
from pipeline.core.userfn import load_function

_ALL = (
    Hook(
        section="data",
        field="data_source_path",
        default_name="RolloutDataSource",
        also_named=("RolloutDataSourceWithBuffer",),
        forms=("f(args)",),
        called="for every group",
        style="class",
        methods={
            "get_samples": "f(num_samples)",
            "add_samples": "f(samples)",
            "save": "f(rollout_id)",
            "load": "f(rollout_id)",
        },
        extra_args=("tokenizer", "open_prompt_data"),
    ),
    Hook(
        section="rollout",
        field="rollout_function_path",
        default_name="generate_rollout",
        forms=("f(args, rollout_id, data_buffer, evaluation=False)",),
        called="for every rollout",
        style="either",
        extra_args=("tokenizer",),
    ),
    Hook(
        section="eval",
        field="eval_function_path",
        default_name="eval_rollout",
        also_named=("generate_rollout",),
        forms=("f(args, rollout_id, data_buffer, evaluation=True)",),
        called="for every evaluation",
        style="either",
        extra_args=("tokenizer",),
    ),
    Hook(
        section="rollout",
        field="custom_generate_function_path",
        default_name="generate",
        also_named=("custom_generate",),
        forms=(
            "f(args, sample, sampling_params)",
            "f(args, sample, sampling_params, evaluation)",
            "f(args, samples, evaluation=False)",
        ),
        called="for every sample",
        style="either",
        extra_args=("engine_client", "tokenizer", "context_length", "time", "vision"),
    ),
    Hook(
        section="rollout",
        field="environment_path",
        default_name="Environment",
        forms=("f(args)",),
        called="for every sample",
        style="class",
        methods={"reset": "f(sample)", "step": "f(action)"},
        extra_args=("engine_client", "tokenizer", "context_length", "time", "vision"),
    ),
    Hook(
        section="agent",
        field="agent_function_path",
        default_name="agent",
        forms=("f(task, base_url, api_key)",),
        called="for every sample",
        style="either",
    ),
    Hook(
        section="rollout",
        field="rollout_sample_hook_path",
        default_name="sample_hook",
        forms=("f(args, sample)",),
        called="for every generated sample",
        style="either",
    ),
    Hook(
        section="reward",
        field="custom_rm_path",
        default_name="reward_func",
        also_named=("custom_rm",),
        group_names=("batched_custom_rm", "batched_async_rm"),
        forms=("f(args, sample)", "f(args, samples)"),
        called="for every sample, or group",
        style="either",
    ),
    Hook(
        section="rollout",
        field="dynamic_sampling_filter_path",
        default_name="keep",
        forms=("f(args, samples)",),
        called="for every scored group",
    ),
    Hook(
        section="async_",
        field="buffer_priority_path",
        default_name="priority",
        forms=("f(args, samples)",),
        called="for every group that comes into the buffer",
    ),
    Hook(
        section="async_",
        field="buffer_filter_path",
        default_name="buffer_filter",
        forms=("f(args, rollout_id, buffer, num_samples)",),
        called="when the learner takes a rollout",
    ),
    Hook(
        section="rollout",
        field="rollout_sample_filter_path",
        default_name="filter_samples",
        forms=("f(args, groups)",),
        called="on the groups taken",
    ),
    Hook(
        section="rollout",
        field="rollout_all_samples_process_path",
        default_name="process_all_samples",
        forms=("f(args, all_groups, data_source)",),
        called="then",
    ),
    Hook(
        section="algorithm",
        field="custom_reward_post_process_path",
        default_name="post_process_rewards",
        forms=("f(args, samples)",),
        called="then",
    ),
    Hook(
        section="algorithm",
        field="custom_convert_samples_to_train_data_path",
        default_name="convert_samples_to_train_data",
        forms=("f(args, samples)",),
        called="then",
    ),
    Hook(
        section="algorithm",
        field="custom_advantage_function_path",
        default_name="compute_advantages",
        forms=("f(args, rollout_data)",),
        called="then",
    ),
    Hook(
        section="algorithm",
        field="rollout_data_postprocess_path",
        default_name="postprocess_rollout_data",
        forms=("f(args, rollout_id, rollout_data)",),
        called="then",
    ),
    Hook(
        section="algorithm",
        field="custom_loss_function_path",
        default_name="loss_function",
        forms=("f(args, batch, logits, sum_of_sample_mean)",),
        called="for every micro-batch",
    ),
    Hook(
        section="algorithm",
        field="custom_tis_function_path",
        default_name="tis_function",
        forms=(
            "f(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, total_lengths,"
            " response_lengths)",
        ),
        called="for every micro-batch",
    ),
    Hook(
        section="algorithm",
        field="custom_pg_loss_reducer_function_path",
        default_name="get_pg_loss_reducer",
        forms=("f(total_lengths, response_lengths, loss_masks, calculate_per_token_loss)",),
        called="for every micro-batch",
    ),
    Hook(
        section="model",
        field="custom_megatron_init_path",
        default_name="megatron_init",
        forms=("f(args)",),
        called="once, on every rank",
    ),
    Hook(
        section="model",
        field="custom_model_provider_path",
        default_name="model_provider",
        also_named=("custom_model_provider",),
        forms=(
            "f(*, pre_process, post_process, vp_stage, build)",
            "f(*, pre_process, post_process, build)",
            "f(*, pre_process, post_process, vp_stage)",
            "f(*, pre_process, post_process)",
        ),
        called="for every part of the model",
    ),
    Hook(
        section="model",
        field="custom_megatron_before_log_prob_hook_path",
        default_name="before_log_prob",
        forms=("f(args, model, store_prefix)",),
        called="before passes for log-probs",
    ),
    Hook(
        section="model",
        field="custom_megatron_before_train_step_hook_path",
        default_name="before_train_step",
        forms=("f(args, rollout_id, step_id, model, optimizer, opt_param_scheduler)",),
        called="before every optimizer step",
    ),
    Hook(
        section="run",
        field="custom_rollout_log_function_path",
        default_name="log_rollout_data",
        forms=("f(rollout_id, args, samples, rollout_extra_metrics, rollout_time)",),
        called="after every rollout",
    ),
    Hook(
        section="run",
        field="custom_eval_rollout_log_function_path",
        default_name="log_eval_rollout_data",
        forms=("f(rollout_id, args, data, extra_metrics)",),
        called="after every evaluation",
    ),
)
HOOKS: Mapping[str, Hook] = {hook.field: hook for hook in _ALL}


def load_hook(field: str, spec: str) -> Callable[..., Any]:
    """The function that `spec` names for the hook `field`. Raises ConfigError.

    What one that is called without await raises comes as UserFunctionError.
    """
    hook = HOOKS[field]
    function = load_function(hook.named(spec), hook.default_name)
    return name_errors(function, hook.flag, spec) if hook.style in ("plain", "class") else function
