"""Several agents for one prompt as it is written for slime: each leaves a sample, rewarded here."""

import random

from slime.utils.misc import load_function
from slime.utils.types import Sample

SETTINGS = {"team_path": f"{__file__.replace('team', 'team_parts')}:run_team", "num_parallel": 3}


async def generate_with_team(args, sample: Sample, sampling_params, evaluation=False):
    from slime.rollout.sglang_rollout import GenerateState

    args.sampling_params = sampling_params
    args.tokenizer = GenerateState(args).tokenizer
    args.rollout_max_context_len = (
        args.eval_max_context_len if evaluation else args.rollout_max_context_len
    )
    for name, value in SETTINGS.items():
        setattr(args, name, value)
    samples = await load_function(args.team_path)(args, sample)
    random.shuffle(samples)
    return samples
