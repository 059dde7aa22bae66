"""A searching agent as it is written for slime: text in and text out, over HTTP."""

import os
import re

from slime.rollout.sglang_rollout import GenerateState
from slime.utils.http_utils import post
from slime.utils.types import Sample

MAX_TURNS = 3


async def generate(args, sample: Sample, sampling_params) -> Sample:
    assert not args.partial_rollout
    state = GenerateState(args)
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"
    prompt_ids = state.tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
    sample.tokens, sample.loss_mask = list(prompt_ids), []
    sample.rollout_top_p_token_ids = sample.rollout_top_p_token_offsets = None
    params = {**sampling_params, "stop": [*(sampling_params.get("stop") or []), "</search>"]}
    params["max_new_tokens"] //= MAX_TURNS
    response, ids, mask, log_probs = "", [], [], []
    for _ in range(MAX_TURNS):
        payload = {"text": sample.prompt + response, "sampling_params": params}
        output = await post(url, {**payload, "return_logprob": True})
        meta = output["meta_info"]
        if meta["finish_reason"]["type"] == "abort":
            sample.status = Sample.Status.ABORTED
            return sample
        said = [item[1] for item in meta["output_token_logprobs"]]
        logs = [item[0] for item in meta["output_token_logprobs"]]
        response, ids, mask = response + output["text"], ids + said, mask + [1] * len(said)
        log_probs += logs
        sample.append_response_tokens(
            args, tokens=said, log_probs=logs, trainable=True, meta_info=meta
        )
        query = re.search(r"<search>(.*?)</search>", output["text"])
        if query is None:
            break
        seen = f"\n<information>{await look_up(query[1])}</information>\n"
        seen_ids = state.tokenizer(seen, add_special_tokens=False)["input_ids"]
        response, ids, mask = response + seen, ids + seen_ids, mask + [0] * len(seen_ids)
        log_probs += [0.0] * len(seen_ids)
        sample.append_response_tokens(args, tokens=seen_ids, trainable=False)
    assert log_probs == sample.rollout_log_probs
    sample.tokens, sample.response, sample.loss_mask = prompt_ids + ids, response, mask
    sample.response_length = len(ids)
    if sample.status is Sample.Status.PENDING:
        sample.status = Sample.Status.COMPLETED
    return sample


async def look_up(query: str) -> str:
    from contents import first_title

    return first_title(await post(os.environ["SEARCH_URL"], {"queries": [query], "topk": 1}))


async def reward_func(args, sample, **kwargs):
    if not isinstance(sample, Sample):
        raise TypeError("expected a Sample")
    return 1.0 if "<information>" in sample.response else len(sample.response) % 2 / 2
