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
_Stages = dict[RewardConfig, RewardStage]
_STAGES: WeakKeyDictionary[asyncio.AbstractEventLoop, _Stages] = WeakKeyDictionary()


async def async_rm(args: Any, sample: Sample, **kwargs: Any) -> Any:
    """The sample's reward: by its own custom_rm_path, the flag's, or a built-in scorer. Raises what
    that raises."""
    path = sample.custom_rm_path or args.custom_rm_path
    if path is not None:
        return await _called(path, args, sample, **kwargs)
    return await _stage(args).reward_of(sample)


async def batched_async_rm(args: Any, samples: list[Sample], **kwargs: Any) -> list[Any]:
    """Their rewards: by --custom-rm-path all at once, where it is given."""
    if args.custom_rm_path is not None:
        return list(await _called(args.custom_rm_path, args, samples, **kwargs))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(async_rm(args, sample, **kwargs)) for sample in samples]
    return [task.result() for task in tasks]


async def _called(path: str, *given: Any, **named: Any) -> Any:
    found = load_function(path)(*given, **named)
    return await found if inspect.isawaitable(found) else found


def _stage(args: Any) -> RewardStage:
    """Of the built-in scorers, with these settings: its workers serve all callers of the loop."""
    names = [f.name for f in dataclasses.fields(RewardConfig)]
    config = RewardConfig(**{name: getattr(args, name) for name in names})
    config = dataclasses.replace(config, group_rm=False)
    stages = _STAGES.setdefault(asyncio.get_running_loop(), {})
    return stages.get(config) or stages.setdefault(config, RewardStage(config, args))
