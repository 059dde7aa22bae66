"""One rollout cut into segments, as slime's pages show it."""

import copy

from slime.rollout.sglang_rollout import GenerateState
from slime.utils.http_utils import post
from slime.utils.types import Sample


async def custom_generate(args, sample: Sample, sampling_params: dict) -> list[Sample]:
    state = GenerateState(args)
    async with state.semaphore:
        output = await post(
            f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate",
            {
                "input_ids": sample.tokens,
                "sampling_params": {**state.sampling_params, **sampling_params},
                "return_logprob": True,
            },
        )
    items = output["meta_info"]["output_token_logprobs"]
    rollout_id = sample.rollout_id if sample.rollout_id is not None else sample.index
    cut, samples = max(1, len(items) // 2), []
    for part in (items[:cut], items[cut:] or items[:cut]):
        s = copy.copy(sample)
        s.tokens = sample.tokens + [item[1] for item in part]
        s.rollout_log_probs = [item[0] for item in part]
        s.response = state.tokenizer.decode([item[1] for item in part])
        s.response_length = len(part)
        s.loss_mask = [1] * len(part)
        s.reward = len(items) / 2
        s.status = Sample.Status.COMPLETED
        s.rollout_id = rollout_id
        samples.append(s)
    return samples
