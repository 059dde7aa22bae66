"""Rewards, as --rm-type and --custom-rm-path say."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from typing import Any
from weakref import WeakKeyDictionary

from configs.schema import RewardConfig
from stages.reward import RewardStage

from ...utils.misc import load_function
from ...utils.types import Sample
from .deepscaler import get_deepscaler_rule_based_reward
from .f1 import f1_score
from .gpqa import compute_gpqa_reward
from .math_utils import extract_boxed_answer, grade_answer_verl

__all__ = [
    "async_rm",
    "batched_async_rm",
    "compute_gpqa_reward",
    "extract_boxed_answer",
    "f1_score",
    "get_deepscaler_rule_based_reward",
    "grade_answer_verl",
]
_STAGES: WeakKeyDictionary[asyncio.AbstractEventLoop, RewardStage] = WeakKeyDictionary()


async def async_rm(args: Any, sample: Sample, **kwargs: Any) -> Any:
    """The sample's reward. Raises what its scorer raises."""
    return await _stage(args).reward_of(sample)


async def batched_async_rm(args: Any, samples: list[Sample], **kwargs: Any) -> list[Any]:
    """Their rewards: of --custom-rm-path all at once, where it is given."""
    if args.custom_rm_path is not None:
        found = load_function(args.custom_rm_path)(args, samples, **kwargs)
        return list(await found if inspect.isawaitable(found) else found)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(async_rm(args, sample)) for sample in samples]
    return [task.result() for task in tasks]


def _stage(args: Any) -> RewardStage:
    loop = asyncio.get_running_loop()
    if loop not in _STAGES:
        names = [f.name for f in dataclasses.fields(RewardConfig)]
        config = RewardConfig(**{name: getattr(args, name) for name in names})
        _STAGES[loop] = RewardStage(dataclasses.replace(config, group_rm=False), args)
    return _STAGES[loop]
