"""From the groups of a rollout to the learner's batch: the user's rollout functions, advantages,
micro-batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from buffers.encoded import decode_group
from configs.schema import Config
from pipeline.core.encoded_group import EncodedGroup
from pipeline.core.flops import TOKENS, Cost
from pipeline.core.types import Group, Sample, TrainBatch, TrainSample
from stages.advantage import compute_advantages, load_hooks, mask_offpolicy_tokens, with_teacher
from stages.advantage.postprocess import load_postprocess
from stages.batch import make_batch
from stages.filter import build_all_samples_process, build_sample_filter

# dropped groups that are kept for --rollout-all-samples-process-path, in rollouts' worth: a filter
# that drops everything must not fill the memory
MOST_DROPPED = 64


class Batcher:
    """Makes the learner's batch of a rollout, when the learner takes it.

    Raises ConfigError when a user's function cannot be loaded."""

    def __init__(
        self, config: Config, args: SimpleNamespace, source: Any, cost: Cost = TOKENS
    ) -> None:
        """`cost`: the model's, by which ranks get equal work."""
        self._config, self._cost = config, cost
        self._hooks = load_hooks(config.algorithm, args)
        self._filter = build_sample_filter(config.rollout.rollout_sample_filter_path, args)
        self._process = build_all_samples_process(
            config.rollout.rollout_all_samples_process_path, args, source
        )
        self._postprocess = load_postprocess(config.algorithm, args)
        # by the dynamic sampling filter, since the last rollout; the newest
        self._dropped: deque[list[Sample]] = deque(
            maxlen=MOST_DROPPED * config.rollout.rollout_batch_size
        )

    def dropped(self, group: EncodedGroup) -> None:
        self._dropped.append(list(decode_group(group).samples))

    def __call__(self, rollout_id: int, policy_version: int, groups: Sequence[Group]) -> TrainBatch:
        algorithm = self._config.algorithm
        return make_batch(
            self.rows(rollout_id, policy_version, self.ordered(groups)),
            rollout_id=rollout_id,
            policy_version=policy_version,
            num_dp_ranks=self._config.data_parallel_size,
            num_steps_per_rollout=algorithm.num_steps_per_rollout,
            global_batch_size=algorithm.global_batch_size,
            max_tokens=algorithm.max_tokens_per_gpu,
            micro_batch_size=algorithm.samples_of_a_micro_batch,
            cost=self._cost,
            balanced=algorithm.balance_data,
        )

    def ordered(self, groups: Sequence[Group]) -> list[Group]:
        """A deterministic run does not train in the order in which groups happened to be ready."""
        if self._config.deterministic:
            return sorted(groups, key=lambda group: group.group_index)
        return list(groups)

    def rows(
        self, rollout_id: int, policy_version: int, groups: Sequence[Group]
    ) -> list[TrainSample]:
        """The samples as the learner takes them, with their advantages; groups in order."""
        rollout, algorithm = self._config.rollout, self._config.algorithm
        lists = [list(group.samples) for group in groups]
        if self._filter is not None:
            self._filter(lists)
        if self._process is not None:
            self._process([*lists, *self._dropped])
            self._dropped.clear()
        if rollout.mask_offpolicy_in_partial_rollout:
            for sample in (s for group in lists for s in group):
                mask_offpolicy_tokens(sample)
        samples = compute_advantages(
            groups,
            algorithm,
            policy_version=policy_version,
            reward_key=self._config.reward.reward_key,
            max_response_len=rollout.rollout_max_response_len,
            hooks=self._hooks,
        )
        if self._config.distill.use_opd:
            samples = with_teacher(samples, [s for group in lists for s in group])
        if self._postprocess is not None:
            samples = self._postprocess(rollout_id, samples)
        return samples
