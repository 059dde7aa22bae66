"""A tool agent in an environment with a simulated user, as it is written for slime's tau-bench: the
chat is rendered as text for every turn, tokens are the difference that a message makes, and no
log-probs are asked for."""

import copy
import json
import re

from shop_world import MAX_STEPS, Shop
from slime.rollout.sglang_rollout import GenerateState
from slime.utils.http_utils import post
from slime.utils.types import Sample

STATUS = {
    "completed": Sample.Status.COMPLETED,
    "truncated": Sample.Status.TRUNCATED,
    "aborted": Sample.Status.ABORTED,
}
CALL = re.compile(r"<tool_call>(.*?)</tool_call>|(\?)", re.DOTALL)


def delta(tokenizer, messages) -> tuple[list[int], list[int]]:
    """Ids and loss mask of what the last message adds to the chat."""
    now = tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
    by_model = messages[-1]["role"] == "assistant"
    before = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=by_model, tokenize=False
    )
    ids = tokenizer.encode(now[len(before) :], add_special_tokens=False)
    return ids, [int(by_model)] * len(ids)


def action_of(text: str) -> dict:
    found = CALL.search(text)
    if found and found[2]:  # what models that are not trained yet say
        return {"name": "look"}
    try:
        return json.loads(found[1]) if found else {"name": "respond", "content": text}
    except ValueError:
        return {"name": "respond", "content": text}


async def generate(args, sample: Sample, sampling_params: dict) -> Sample:
    assert not args.partial_rollout, "a game cannot be cut"
    state = GenerateState(args)
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"
    shop = Shop(task=str(sample.prompt))
    messages = [{"role": "system", "content": shop.rules}]
    messages.append({"role": "user", "content": shop.reset()})
    text = state.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=False
    )
    prompt_ids = state.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids, mask, outcome = [], [], "truncated"
    for _ in range(MAX_STEPS):
        asked = state.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        output = await post(url, {"text": asked, "sampling_params": sampling_params})
        if output["meta_info"]["finish_reason"]["type"] == "abort":
            outcome = "aborted"
            break
        messages.append({"role": "assistant", "content": output["text"]})
        more, trained = delta(state.tokenizer, messages)
        ids, mask = ids + more, mask + trained
        role, said, done = shop.step(action_of(output["text"]))
        if done:
            outcome = "completed"
            break
        messages.append({"role": role, "content": said})
        more, trained = delta(state.tokenizer, messages)
        ids, mask = ids + more, mask + trained
    made = copy.deepcopy(sample)
    made.status, made.prompt = STATUS[outcome], text
    made.tokens, made.loss_mask = prompt_ids + ids, mask
    made.response = "".join(m["content"] for m in messages if m["role"] == "assistant")
    made.response_length = len(mask)
    made.reward = shop.reward
    made.metadata = {**made.metadata, "actions": shop.actions}
    return made
