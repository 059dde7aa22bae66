"""The evaluation that runs beside training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from configs.schema.marks import REPEATS
from configs.schema.rollout import RolloutConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Evaluation, beside training."""

    # what is evaluated on: pairs NAME PATH NAME PATH ..., or one PATH; may be given several times
    eval_prompt_data: tuple[str, ...] = field(default=(), metadata=REPEATS)
    # what is evaluated on, as a YAML file: `defaults` and `datasets`, each with a name, a path and
    # keys of its own (rm_type, n_samples_per_eval_prompt, temperature, ...); slime's format
    eval_config: str | None = None
    eval_interval: int | None = None  # evaluates after every so many rollouts; 0 never does
    skip_eval_before_train: bool = False  # leaves out the evaluation of the first weights
    n_samples_per_eval_prompt: int = 1  # how many samples are generated for an evaluation prompt
    # evaluates with your own function, whatever --eval-prompt-data says: f(args, rollout_id,
    # data_buffer, evaluation=True) -> {name: {"rewards": [...]}}
    eval_function_path: str | None = None
    # the temperature of evaluation; by default --rollout-temperature
    eval_temperature: float | None = None
    eval_top_p: float | None = None  # in evaluation; by default --rollout-top-p
    eval_top_k: int | None = None  # in evaluation; by default --rollout-top-k
    # limits a response in evaluation; by default --rollout-max-response-len
    eval_max_response_len: int | None = None
    eval_min_new_tokens: int | None = None  # lets no response in evaluation end before so many
    eval_max_prompt_len: int | None = None  # in evaluation; by default --rollout-max-prompt-len
    eval_max_context_len: int | None = None  # in evaluation; by default --rollout-max-context-len
    eval_input_key: str | None = None  # in evaluation; by default --input-key
    eval_label_key: str | None = None  # in evaluation; by default --label-key
    eval_tool_key: str | None = None  # in evaluation; by default --tool-key
    eval_reward_key: str | None = None  # in evaluation; by default --reward-key
    # from which reward on an answer is right, in evaluations' pass@k
    eval_pass_reward: float = 1.0
    # that deadline in evaluation; by default --episode-timeout-seconds
    eval_episode_timeout_seconds: float | None = None
    eval_max_prompts: int = 256  # how many prompts of a procedural task are evaluated on

    def as_rollout(self, rollout: RolloutConfig) -> RolloutConfig:
        """How evaluation generates: as the rollouts do, but for what is said of it."""
        said = {
            "rollout_temperature": self.eval_temperature,
            "rollout_top_p": self.eval_top_p,
            "rollout_top_k": self.eval_top_k,
            "rollout_max_response_len": self.eval_max_response_len,
            "rollout_max_prompt_len": self.eval_max_prompt_len,
            "rollout_max_context_len": self.eval_max_context_len,
        }
        given: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
        return replace(rollout, **given)

    def episode_deadline(self, rollout: RolloutConfig) -> tuple[float | None, str]:
        """Seconds, and the flag that says so: its own, or the rollouts'."""
        if self.eval_episode_timeout_seconds is None:
            return rollout.episode_deadline
        return self.eval_episode_timeout_seconds, "--eval-episode-timeout-seconds"
