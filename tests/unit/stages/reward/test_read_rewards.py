"""Rewards without a number: kept where a function of the user's makes numbers of them, else
refused by name of what would help."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.schema import RewardConfig
from pipeline.core.types import Sample, Status
from stages.reward import RewardStage, build_reward

Make = Callable[..., RewardStage]
READERS = ["custom_reward_post_process_path", "custom_convert_samples_to_train_data_path"]
# what a function returns, and what is kept
READABLE = [
    ("{'right': 1, 'why': ['a', None]}", {"right": 1.0, "why": ["a", None]}),
    ("{'score': [0.1, 0.9]}", {"score": [0.1, 0.9]}),
    ("[1, 'two', {'three': 3}]", [1, "two", {"three": 3}]),
    ("('good', np.float32(0.5))", ["good", 0.5]),
    ("'good'", "good"),
]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """A stage with a function that returns `value`; `reader`: the flag of who reads its rewards."""
    stages: list[RewardStage] = []

    def build(kind: str, value: str, reader: str | None, **flags: Any) -> RewardStage:
        path = tmp_path / f"rm{len(stages)}.py"
        path.write_text(f"import numpy as np\n{kind} reward_func(args, sample): return {value}\n")
        args = SimpleNamespace(**({reader: "hook.py"} if reader else {}))
        stages.append(build_reward(RewardConfig(custom_rm_path=str(path), **flags), args))
        return stages[-1]

    yield build
    for stage in stages:
        await stage.close()


def answered() -> Sample:
    return Sample(index=0, response="a", status=Status.COMPLETED)


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(("value", "kept"), READABLE)
async def test_whoever_reads_rewards_is_given_them_as_they_are(
    make: Make, kind: str, value: str, kept: Any
) -> None:
    for reader in READERS:
        sample = answered()
        await make(kind, value, reader)([sample])
        assert (sample.error, sample.reward) == (None, kept)


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("value", [value for value, _ in READABLE])
async def test_where_nobody_reads_them_the_flags_that_would_help_are_named(
    make: Make, kind: str, value: str
) -> None:
    sample = answered()
    await make(kind, value, None)([sample])
    assert sample.status is Status.FAILED and sample.reward is None
    assert "--reward-key" in sample.error
    assert "--custom-reward-post-process-path" in sample.error


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("value", ["None", "float('nan')", "{1, 2}", "{'right': float('inf')}"])
async def test_what_nobody_can_read_is_refused_all_the_same(
    make: Make, kind: str, value: str
) -> None:
    sample = answered()
    await make(kind, value, READERS[0])([sample])
    assert sample.status is Status.FAILED and "the reward" in sample.error


async def test_numbers_are_judged_as_without_a_reader(make: Make) -> None:
    for value, kept in (("0.4", 0.0), ("{'score': 0.4, 'b': 0.3}", {"score": 0.0, "b": 0.3})):
        sample = answered()
        await make("def", value, READERS[0], reward_threshold=0.5)([sample])
        assert sample.reward == kept
