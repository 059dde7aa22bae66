"""Filters, rewards and batches as they are written for slime, and a look at what came through."""

import json
import os

from slime.rollout.filter_hub.base_types import DynamicFilterOutput
from slime.utils.types import Sample


def keep(args, samples: list[Sample], **kwargs) -> DynamicFilterOutput:
    rewards = [sample.get_reward_value(args) for sample in samples]
    out = DynamicFilterOutput(len(samples) > 1, f"one_{rewards[0]}")
    out.keep_when_insufficient = True
    return out


def post_process_rewards(args, samples: list[Sample]):
    raw = [sample.get_reward_value(args) for sample in samples]
    mean = sum(raw) / len(raw)
    return raw, [one - mean for one in raw]


def convert_samples_to_train_data(args, samples: list[Sample]) -> dict:
    raw, rewards = post_process_rewards(args, samples)
    rollout_ids, known = [], {s.rollout_id for s in samples if s.rollout_id is not None}
    for sample in samples:
        name = sample.rollout_id
        if name is None:
            name = max(known, default=0) + 1
            known.add(name)
        rollout_ids.append(name)
    return {
        "tokens": [sample.tokens for sample in samples],
        "response_lengths": [sample.response_length for sample in samples],
        "rewards": rewards,
        "raw_reward": raw,
        "truncated": [int(s.status == Sample.Status.TRUNCATED) for s in samples],
        "sample_indices": [sample.index for sample in samples],
        "rollout_ids": rollout_ids,
        "loss_masks": [sample.loss_mask for sample in samples],
        "rollout_mask_sums": [int(sum(sample.loss_mask)) for sample in samples],
        "rollout_log_probs": [sample.rollout_log_probs for sample in samples],
    }


def look(args, all_groups: list[list[Sample]], data_source) -> None:
    """Into a file, for the test."""
    with open(os.environ["SEEN"], "a") as file:  # noqa: PTH123
        for sample in (s for group in all_groups for s in group):
            print(json.dumps(sample.to_dict()), file=file)
