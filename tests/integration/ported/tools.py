"""An agent with a tool as it is written for slime: attributes on the sample, a reward dict."""

import asyncio

from slime.rollout.sglang_rollout import GenerateState
from slime.utils.http_utils import post
from slime.utils.types import Sample

try:
    from slime.rollout.rm_hub.math_dapo_utils import compute_score as math_dapo_compute_score
except ImportError as error:
    raise ImportError("no scorer") from error

from sandbox import SEMAPHORE, run_tool


async def generate(args, sample: Sample, sampling_params) -> Sample:
    assert not args.partial_rollout
    sample.rollout_log_probs = None
    sample.response, sample.response_length, sample.loss_mask = "", 0, []
    state = GenerateState(args)
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"
    prompt = f"Tools: calc\n{sample.prompt}"
    prompt_ids = state.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    sample.tokens = list(prompt_ids)
    loss_masks = sample.loss_mask  # grows as the sample does
    room = args.rollout_max_context_len or args.context_parallel_size * args.max_tokens_per_gpu
    response, ids, calls = "", [], 0
    for _turn in range(2):
        budget = min(sampling_params["max_new_tokens"], room - len(prompt_ids) - len(ids))
        params = {**sampling_params, "max_new_tokens": budget}
        payload = {"input_ids": prompt_ids + ids, "sampling_params": params, "return_logprob": True}
        output = await post(url, payload)
        if "output_token_logprobs" not in output["meta_info"]:
            sample.status = Sample.Status.ABORTED
            return sample
        said = [item[1] for item in output["meta_info"]["output_token_logprobs"]]
        logs = [item[0] for item in output["meta_info"]["output_token_logprobs"]]
        text = state.tokenizer.decode(said)
        response, ids = response + text, ids + said
        sample.append_response_tokens(
            args, tokens=said, log_probs=logs, trainable=True, meta_info=output["meta_info"]
        )
        if output["meta_info"]["finish_reason"]["type"] == "length" or calls:
            break
        async with SEMAPHORE:
            seen = f"<interpreter>{await run_tool(text)}</interpreter>"
        calls += 1
        seen_ids = state.tokenizer(seen, add_special_tokens=False)["input_ids"]
        response, ids = response + seen, ids + seen_ids
        sample.append_response_tokens(args, tokens=seen_ids, trainable=False)
    sample.tokens, sample.response = prompt_ids + ids, response
    sample.response_length, sample.loss_mask = len(ids), loss_masks
    sample.payload_text = prompt + response
    sample.tool_call_count = calls
    sample.lock = asyncio.Lock()  # JSON cannot say it
    return sample


async def reward_func(args, sample, **kwargs):
    turns = getattr(sample, "tool_call_count", 0)
    assert sample.payload_text.endswith(sample.response)
    result = math_dapo_compute_score(
        sample.prompt + sample.response, sample.label or "", strict_box_verify=True
    )
    result["score"] += turns / 10 + len(sample.response) % 3
    return result
