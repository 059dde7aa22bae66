"""Two roles of one model, trained together: the solver answers, the verifier says whether the
answer is right, and of every rollout both samples are trained (fan-out).

    python train_async.py --config examples/solver_verifier/preset.yaml --mock --num-rollout 5

Both samples are parts of one rollout and carry its index. What each role is worth is compared with
the same role in the group alone (`post_process_rewards`): it is no merit of a verifier's that
solvers find the prompt easy."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from slipstream import Sample, open_session

SOLVER, VERIFIER = "solver", "verifier"
YES, NO = "yes", "no"
QUESTION = " -> {answer} Right? "  # behind the prompt and ahead of the verdict
MAX_VERDICT_TOKENS = 4


async def generate(args: Any, sample: Sample, sampling_params: Mapping[str, Any]) -> list[Sample]:
    """The solver's sample, and the verifier's of its answer."""
    verifier = copy.deepcopy(sample)
    async with open_session(args, sample, sampling_params) as session:
        await session.generate()
    right = sample.response.strip() == str(sample.label)
    sample.metadata |= {"role": SOLVER, "right": right}
    verifier.prompt = f"{sample.prompt}{QUESTION.format(answer=sample.response.strip())}"
    verifier.tokens = args.tokenizer.encode(verifier.prompt, add_special_tokens=False)
    verifier.metadata |= {"role": VERIFIER, "right": right}
    most = min(MAX_VERDICT_TOKENS, sampling_params["max_new_tokens"])
    async with open_session(args, verifier, {**sampling_params, "max_new_tokens": most}) as session:
        await session.generate()
    return [sample, verifier]


async def reward_func(args: Any, sample: Sample, **_: Any) -> float:
    """The solver's: is the answer right? The verifier's: is the verdict?"""
    right = bool(sample.metadata["right"])
    if sample.metadata["role"] == SOLVER:
        return float(right)
    return float(sample.response.strip() == (YES if right else NO))


def post_process_rewards(args: Any, samples: list[Sample]) -> tuple[list[float], list[float]]:
    """(raw rewards; each less the mean of the same role in its group), in the order given."""
    raw = [float(sample.get_reward_value(args)) for sample in samples]
    peers: dict[Any, list[float]] = defaultdict(list)
    keys = [(sample.group_index, sample.metadata["role"]) for sample in samples]
    for key, reward in zip(keys, raw, strict=True):
        peers[key].append(reward)
    return raw, [r - sum(peers[k]) / len(peers[k]) for k, r in zip(keys, raw, strict=True)]
