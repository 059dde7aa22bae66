"""Several agents for one prompt as it is written for slime: each leaves a sample, rewarded here."""

import random
from copy import deepcopy

from slime.utils.misc import load_function
from slime.utils.types import Sample


async def generate_with_team(args, sample: Sample, sampling_params, evaluation=False):
    from slime.rollout.sglang_rollout import GenerateState

    own = deepcopy(args)
    own.sampling_params = sampling_params
    own.tokenizer = GenerateState(args).tokenizer
    own.rollout_max_context_len = (
        args.eval_max_context_len if evaluation else args.rollout_max_context_len
    )
    own.team_path, own.num_parallel = f"{__file__.replace('team', 'team_parts')}:run_team", 3
    samples = await load_function(own.team_path)(own, sample)
    random.shuffle(samples)
    return samples
