"""Responses whose lengths are lognormal, however the model ends them: what a small model with
random weights has not by itself.

    --custom-generate-function-path benchmarks/lengths.py

A sample's length follows from --rollout-seed and its index, so two runs are asked for the same
tokens. The mean before the limit is MEAN, the logarithm's standard deviation SIGMA, and no response
is longer than --rollout-max-response-len."""

from __future__ import annotations

import math
import random
from typing import Any

from slipstream import Sample, open_session

MEAN, SIGMA = 16.0, 1.0


async def generate(args: Any, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    draw = random.Random(f"{args.rollout_seed}/{sample.index}")
    length = draw.lognormvariate(math.log(MEAN) - SIGMA**2 / 2, SIGMA)
    length = min(args.rollout_max_response_len, max(1, round(length)))
    params = {**sampling_params, "max_new_tokens": length, "ignore_eos": True}
    async with open_session(args, sample, params) as session:
        await session.generate()
    return sample
