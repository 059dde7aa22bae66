"""Whole rollouts of one's own: the easiest prompts of twice as many, by how short they are. And an
evaluation that asks nothing of the engines.

--rollout-function-path examples/hooks/rollout_function.py
--eval-function-path examples/hooks/rollout_function.py:eval_rollout
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from slipstream import Sample


async def generate_rollout(
    args: Any, rollout_id: int, data_buffer: Any, evaluation: bool = False
) -> list[list[Sample]]:
    """`args.rollout_batch_size` groups, with tokens, response_length, status and reward."""
    groups = data_buffer.get_samples(2 * args.rollout_batch_size)
    groups.sort(key=lambda group: len(group[0].prompt))
    chosen, others = groups[: args.rollout_batch_size], groups[args.rollout_batch_size :]
    data_buffer.add_samples(others)
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        for sample in (s for group in chosen for s in group):
            tasks.create_task(_generate(args, session, url, sample))
    return chosen


async def _generate(args: Any, session: aiohttp.ClientSession, url: str, sample: Sample) -> None:
    if not sample.tokens:
        sample.tokens = args.tokenizer.encode(sample.prompt, add_special_tokens=False)
    asked = {
        "input_ids": list(sample.tokens),
        "sampling_params": {"max_new_tokens": args.rollout_max_response_len, "temperature": 1.0},
        "return_logprob": True,
    }
    async with session.post(url, json=asked) as response:
        response.raise_for_status()
        answer = await response.json()
    found = answer["meta_info"]["output_token_logprobs"]
    sample.append_response_tokens(
        args,
        tokens=[token for _, token, *_ in found],
        log_probs=[log_prob for log_prob, *_ in found],
        meta_info=answer["meta_info"],
    )
    sample.response = answer["text"]
    sample.reward = float(sample.label is not None and sample.label in sample.response)


def eval_rollout(
    args: Any, rollout_id: int, data_buffer: Any, evaluation: bool = True
) -> dict[str, dict[str, Any]]:
    """Of every data set its rewards, and `samples` or `truncated` where there are any."""
    return {"constant": {"rewards": [0.5, 1.0], "truncated": [False, True]}}
