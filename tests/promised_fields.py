"""What every run says of itself: fields that users' own scripts read."""

from __future__ import annotations

# of each train record in metrics.jsonl, at least
TRAIN_FIELDS = {
    "kind",
    "rollout_id",
    "policy_version",
    "reward_mean",
    "loss",
    "grad_norm",
    "num_samples",
    "num_tokens",
    "staleness_mean",
    "staleness_p50",
    "staleness_p99",
    "staleness_max",
    "staleness_bound",
    "ess_fraction",
    "kl_rollout_old",
    "generation_idle_fraction",
    "trainer_idle_fraction",
    "wall_seconds",
}

# of summary.json, in order; some are added where they apply
SUMMARY_FIELDS = [
    "num_rollouts",
    "final_policy_version",
    "reward_first",
    "reward_last",
    "samples_generated",
    "samples_trained",
    "samples_failed",
    "samples_timed_out",
    "samples_discarded",
    "samples_discarded_before_buffer",
    "samples_discarded_stale",
    "samples_discarded_untrained",
    "samples_unjudged",
    "staleness_max",
    "staleness_bound",
    "groups_replayed",
    "push_count",
    "push_stall_seconds_p50",
    "generation_idle_fraction",
    "trainer_idle_fraction",
    "wall_seconds",
    "seconds_to_reward_0_9",
    "rollouts_with_equal_rewards",
]
