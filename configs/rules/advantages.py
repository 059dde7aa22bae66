"""Rules for advantages and for what is done at sampling time; part of configs.rules.validate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from configs.schema import Config

_WITH_STD = ("grpo", "gspo", "cispo", "sapo", "vespo")
# compare the samples of a prompt
_WITHIN_GROUPS = (*_WITH_STD, "dr_grpo", "max_rl", "opob", "rloo", "reinforce_plus_plus_baseline")
_RAW_ADVANTAGES = ", or use reinforce_plus_plus for advantages of raw rewards"


def advantages(config: Config) -> Iterator[str]:
    a, name = config.algorithm, config.algorithm.advantage_estimator
    yield from _groups_of_one(config)
    if not a.rewards_normalization and name not in _WITH_STD:
        why = (
            "compares rewards within their group by definition"
            if name in _WITHIN_GROUPS
            else "takes raw rewards anyway"
        )
        yield (
            f"--disable-rewards-normalization with --advantage-estimator {name}: {name} {why}. Drop"
            " the flag"
            f"{_RAW_ADVANTAGES if name in _WITHIN_GROUPS else ''}"
        )
    if not a.grpo_std_normalization and name not in (*_WITH_STD, "dr_grpo"):
        yield (
            f"--disable-grpo-std-normalization with --advantage-estimator {name}: {name} divides by"
            " no standard deviation. Drop the flag"
        )
    if (
        name.startswith("reinforce_plus_plus")
        and not a.normalize_advantages
        and not a.custom_advantage_function_path
    ):
        yield (
            f"--advantage-estimator {name} without --normalize-advantages: its advantages are"
            " defined as whitened over the whole rollout. Add --normalize-advantages"
        )
    if (
        a.gamma != 1
        and name not in ("reinforce_plus_plus", "ppo")
        and not a.custom_advantage_function_path
    ):
        yield (
            f"--gamma {a.gamma:g} with --advantage-estimator {name}: every token of a sample has"
            " the same advantage there, nothing is discounted. Use reinforce_plus_plus or ppo, or"
            " drop the flag"
        )
    if name == "opob" and (a.normalize_advantages or a.custom_advantage_function_path):
        other = (
            "--normalize-advantages"
            if a.normalize_advantages
            else f"--custom-advantage-function-path {a.custom_advantage_function_path}"
        )
        yield (
            f"--advantage-estimator opob with {other}: it takes its baseline off raw rewards, in"
            " the learner, and what is left is not to be shifted again. Drop one of the two"
        )
    if a.lambd != 1 and name != "ppo" and not a.custom_advantage_function_path:
        yield (
            f"--lambd {a.lambd:g} with --advantage-estimator {name}: GAE's lambda needs the critic"
            " of ppo. Drop the flag"
        )
    if a.custom_convert_samples_to_train_data_path and a.custom_reward_post_process_path:
        yield (
            f"--custom-reward-post-process-path {a.custom_reward_post_process_path} with"
            " --custom-convert-samples-to-train-data-path"
            f" {a.custom_convert_samples_to_train_data_path}: the latter's dict holds the rewards,"
            " the former would never be used. Call it from there, and drop it here"
        )


def critic(config: Config) -> Iterator[str]:
    c, a = config.critic, config.algorithm
    if a.advantage_estimator != "ppo":
        for name, default in ((f.name, f.default) for f in dataclasses.fields(c)):
            if getattr(c, name) != default:
                flag = f"--{name.replace('_', '-')} {getattr(c, name)}"
                yield (
                    f"{flag} with --advantage-estimator {a.advantage_estimator}: only ppo has a"
                    " critic. Use ppo, or drop the flag"
                )
        return
    if a.custom_advantage_function_path:
        yield (
            f"--custom-advantage-function-path {a.custom_advantage_function_path} with"
            " --advantage-estimator ppo: the critic makes the advantages, in the learner, the"
            " function would never be asked. Use another estimator, or drop the function"
        )
    if c.num_critic_only_steps >= config.run.num_rollout:
        yield (
            f"--num-critic-only-steps {c.num_critic_only_steps} with --num-rollout"
            f" {config.run.num_rollout}: the policy would never be trained. Use fewer critic-only"
            " rollouts"
        )
    if c.critic_load and not config.run.mock and not Path(c.critic_load).is_dir():
        yield (
            f"--critic-load {c.critic_load}: no such folder; expected a Hugging Face model, a"
            " snapshot (rollout_NNNNNN) or its critic"
        )
    decay = config.optim.lr_decay_iters
    if decay and c.critic_lr_warmup_iters >= decay:
        yield (
            f"--critic-lr-warmup-iters {c.critic_lr_warmup_iters} must be below --lr-decay-iters"
            f" {decay}: both schedules end there"
        )


def _groups_of_one(config: Config) -> Iterator[str]:
    a, rollout = config.algorithm, config.rollout
    users = rollout.custom_generate_function_path or any(
        (
            config.agent.has_agent,
            rollout.rollout_function_path,
            a.custom_reward_post_process_path,
            a.custom_advantage_function_path,
            a.custom_convert_samples_to_train_data_path,
        )
    )
    if (
        rollout.n_samples_per_prompt > 1
        or users
        or config.run.mock
        or a.is_supervised
        or config.distill.use_opd
        or a.advantage_estimator not in _WITHIN_GROUPS
    ):
        return
    if a.rewards_normalization:
        yield (
            f"--n-samples-per-prompt 1 with --advantage-estimator {a.advantage_estimator}: a sample"
            " is compared with the others of its prompt, alone its advantage is always 0. Use 2 or"
            " more, or reinforce_plus_plus with --normalize-advantages"
        )


def sampling(config: Config) -> Iterator[str]:
    size, groups = config.rollout.over_sampling_batch_size, config.rollout.rollout_batch_size
    if size is not None and size < groups:
        yield (
            f"--over-sampling-batch-size {size} with --rollout-batch-size {groups}: expected at"
            " least that many. Drop the flag: groups that a filter drops are replaced anyway"
        )
