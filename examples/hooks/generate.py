"""Fan-out: one rollout that comes out as two samples, an answer and a second try at it. They share
the weight of one rollout.

--custom-generate-function-path examples/hooks/generate.py
"""

from __future__ import annotations

import copy
from typing import Any

from slipstream import Sample, open_session


async def generate(
    args: Any, sample: Sample, sampling_params: dict[str, Any], evaluation: bool = False
) -> Sample | list[Sample]:
    # keeps `index`: that is what makes it a sample of the same rollout
    again = copy.deepcopy(sample)
    samples = [sample] if evaluation else [sample, again]
    for each in samples:
        each.session_id = None  # a conversation of its own
        async with open_session(args, each, sampling_params) as session:
            await session.generate()
    return samples
