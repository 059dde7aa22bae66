"""How far generation runs ahead, and the replay buffer between it and the learner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncConfig:
    """The two knobs, the bound, and the replay buffer."""

    # K, how many rollouts are generated ahead; 0 is synchronous and on-policy
    async_buffer_size: int = 0
    update_weights_interval: int = 1  # N: weights are pushed after every so many rollouts
    # trains on while a push is under way; with --async-buffer-size 0 there is nothing to train on
    overlap_push: bool = True
    # S, in policy versions; by default 2 ceil(K/N), with replay + ceil((max-times-sampled - 1)/N)
    max_staleness: int | None = None
    # for experiments: every trained token is exactly K versions old, not at most S (in the first K
    # rollouts it is of version 0); a push waits for all that generates
    fixed_staleness: bool = False
    # says what becomes of a group that would miss its deadline: it is waited for, removed, or tried
    # again
    stale_policy: Literal["wait", "drop", "retry"] = "wait"
    # chooses the order of ready groups
    buffer_selector: Literal["deadline", "fifo", "lifo", "uniform", "prioritized"] = "deadline"
    # makes chances proportional to priority^exponent (prioritized); 0 is uniform
    buffer_priority_exponent: float = 0.6
    # rates groups with your own function, file.py[:name]: f(args, samples) -> priority; by default
    # the standard deviation of the rewards
    buffer_priority_path: str | None = None
    # chooses the groups to train on, as in slime, file.py[:name]: f(args, rollout_id, buffer,
    # num_samples) -> groups
    buffer_filter_path: str | None = None
    max_times_sampled: int = 1  # how many rollouts may train on the same group; above 1 is replay
    # how many rollouts train on a group on average; by default --max-times-sampled
    samples_per_insert: float | None = None
    # how many groups must be ready before the first rollout; by default those that it takes
    min_size_to_sample: int | None = None
    # makes generators wait while so many bytes of groups wait for the learner
    buffer_max_bytes: int = 4 << 30
    # says what a finished group survives: nothing, kill -9, or power loss
    buffer_durability: Literal["memory", "process", "fsync"] = "process"
    # keeps the buffer's segments after their groups are trained and checkpointed
    keep_trajectories: bool = False
    # keeps the segments of the last so many rollouts, to be looked at with `python -m pipeline
    # buffer`
    keep_last_rollouts: int = 2

    @property
    def samples_of_a_group(self) -> float:
        """Rollouts that train on a group, on average."""
        return (
            self.samples_per_insert
            if self.samples_per_insert is not None
            else float(self.max_times_sampled)
        )
