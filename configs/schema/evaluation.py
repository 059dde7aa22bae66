"""The evaluation that runs beside training."""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.schema.repeats import REPEATS
from configs.schema.rollout import RolloutConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Evaluation, beside training."""

    # what is evaluated on: pairs NAME PATH NAME PATH ..., or one PATH; may be given several times
    eval_prompt_data: tuple[str, ...] = field(default=(), metadata=REPEATS)
    eval_interval: int | None = None  # evaluates after every so many rollouts; 0 never does
    n_samples_per_eval_prompt: int = 1  # how many samples are generated for an evaluation prompt
    # the temperature of evaluation; by default --rollout-temperature
    eval_temperature: float | None = None
    # limits a response in evaluation; by default --rollout-max-response-len
    eval_max_response_len: int | None = None
    # that deadline in evaluation; by default --episode-timeout-seconds
    eval_episode_timeout_seconds: float | None = None
    eval_max_prompts: int = 256  # how many prompts of a procedural task are evaluated on

    def episode_deadline(self, rollout: RolloutConfig) -> tuple[float | None, str]:
        """Seconds, and the flag that says so: its own, or the rollouts'."""
        if self.eval_episode_timeout_seconds is None:
            return rollout.episode_deadline
        return self.eval_episode_timeout_seconds, "--eval-episode-timeout-seconds"
