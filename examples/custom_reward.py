"""A reward function of one's own: the last number of the response is the answer; brevity breaks
ties.

    python train_async.py ... --custom-rm-path examples/custom_reward.py --reward-key score

A dict keeps its parts apart: `--reward-key` names the one that is trained on.
"""

from __future__ import annotations

import re
from typing import Any

from slipstream import Sample

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


async def reward_func(args: Any, sample: Sample, **_: Any) -> dict[str, float]:
    numbers = NUMBER.findall(sample.response)
    correct = float(bool(numbers) and numbers[-1] == str(sample.label))
    brevity = 1.0 - min(sample.response_length / args.rollout_max_response_len, 1.0)
    return {"score": correct + 0.1 * correct * brevity, "correct": correct, "brevity": brevity}
