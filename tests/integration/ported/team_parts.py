"""The agents of team.py."""

import asyncio
from copy import deepcopy

from slime.rollout.rm_hub import batched_async_rm
from slime.utils.http_utils import post
from slime.utils.types import Sample


async def solve(args, key: str) -> None:
    sample = deepcopy(args.sample)
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"
    sample.prompt = f"{key}: {args.sample.prompt}"
    sample.tokens = args.tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
    params = deepcopy(args.sampling_params)
    output = await post(
        url, {"input_ids": sample.tokens, "sampling_params": params, "return_logprob": True}
    )
    items = output["meta_info"]["output_token_logprobs"]
    sample.append_response_tokens(
        args,
        tokens=[item[1] for item in items],
        log_probs=[item[0] for item in items],
        trainable=True,
        meta_info=output["meta_info"],
    )
    assert len(sample.rollout_log_probs) == sample.response_length
    sample.response = output["text"]
    sample.reason_content, sample.response_content = None, output["text"]
    args.results_dict[key].append(sample)


async def run_team(args, sample: Sample) -> list[Sample]:
    args = deepcopy(args)
    args.sample, args.results_dict = sample, {"solver": [], "rewriter": []}
    await asyncio.gather(*(solve(args, "solver") for _ in range(args.num_parallel)))
    await solve(args, "rewriter")
    for made in args.results_dict.values():
        for one, reward in zip(made, await batched_async_rm(args, made), strict=True):
            one.reward = reward * 0.8
    out = args.results_dict["solver"] + args.results_dict["rewriter"]
    for one in out:
        one.rollout_id = sample.index
    return out
