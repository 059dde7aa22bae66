"""--rollout-function-path: what a function that makes whole rollouts is given, and held to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.errors import GenerateError, UserFunctionError
from pipeline.core.types import Sample, Status, VersionSpan
from stages.generate.rollout_function import DataBuffer, EvalFunction, RolloutFunction

FUNCTIONS = """
import asyncio
import sys
from slime.rollout.base_types import RolloutFnTrainOutput
from slipstream import Sample

def filled(args, data_buffer):
    groups = data_buffer.get_samples(args.rollout_batch_size)
    for sample in (s for group in groups for s in group):
        sample.tokens, sample.response_length, sample.reward = [1, 2, 3], 2, 0
    return groups

def generate_rollout(args, rollout_id, data_buffer, evaluation=False):
    return filled(args, data_buffer)

async def waits(args, rollout_id, data_buffer, evaluation=False):
    await asyncio.sleep(0)
    return RolloutFnTrainOutput(samples=filled(args, data_buffer), metrics={"mean": rollout_id})

def runs_a_loop(args, rollout_id, data_buffer, evaluation=False):
    return asyncio.run(waits(args, rollout_id, data_buffer))

def flat(args, rollout_id, data_buffer, evaluation=False):
    return [sample for group in filled(args, data_buffer) for sample in group]

def fans_out(args, rollout_id, data_buffer, evaluation=False):
    return [[[s, s] for s in group] for group in filled(args, data_buffer)]

def too_few(args, rollout_id, data_buffer, evaluation=False):
    return filled(args, data_buffer)[1:]

def nothing(args, rollout_id, data_buffer, evaluation=False):
    return None

def strings(args, rollout_id, data_buffer, evaluation=False):
    return [["a"]] * args.rollout_batch_size

def aborted(args, rollout_id, data_buffer, evaluation=False):
    groups = filled(args, data_buffer)
    groups[1][0].status = Sample.Status.ABORTED
    return groups

def leaves(args, rollout_id, data_buffer, evaluation=False):
    sys.exit("no server")

def evaluates(args, rollout_id, data_buffer, evaluation=True):
    return {"seen": {"rewards": [float(evaluation), rollout_id]}}
"""


class Prompts:
    """A source whose prompts are numbered by their text."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.returned: list[list[Sample]] = []

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        out, self.returned = self.returned[:num_samples], self.returned[num_samples:]
        for _ in range(num_samples - len(out)):
            out.append([Sample(prompt=str(self.num_asked)) for _ in range(2)])
            self.num_asked += 1
        return out

    def add_samples(self, groups: list[list[Sample]]) -> None:
        self.returned += groups

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rollouts") / "functions.py"
    path.write_text(FUNCTIONS)
    return path


def function(file: Path, name: str, **more: Any) -> RolloutFunction:
    args = SimpleNamespace(rollout_batch_size=7)
    return RolloutFunction(f"{file}:{name}", args, Prompts(), current_version=lambda: 5, **more)


@pytest.mark.parametrize("name", ["generate_rollout", "waits", "runs_a_loop", "flat"])
async def test_groups_come_complete_sync_or_async(file: Path, name: str) -> None:
    groups = await function(file, name)(3, 2)
    assert [[s.prompt for s in group] for group in groups] == [["0", "0"], ["1", "1"]]
    assert [s.index for group in groups for s in group] == [0, 1, 2, 3]
    for sample in (s for group in groups for s in group):
        assert sample.status is Status.COMPLETED  # slime's need not say
        assert sample.weight_versions == [VersionSpan(5, 0, 2)] and sample.loss_mask == [1, 1]


async def test_what_a_sample_fans_out_to_stays_in_its_group(file: Path) -> None:
    groups = await function(file, "fans_out")(0, 2)
    assert [[s.index for s in group] for group in groups] == [[0, 0, 1, 1], [2, 2, 3, 3]]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("too_few", "returned 1 groups; expected args.rollout_batch_size = 2 groups"),
        ("nothing", "returned None; expected"),
        ("strings", "a group holds 'a'; expected Samples"),
        ("aborted", "sample 2: the function returned it as aborted"),
    ],
)
async def test_what_cannot_be_trained_on_is_refused(file: Path, name: str, why: str) -> None:
    with pytest.raises(GenerateError, match=why) as caught:
        await function(file, name)(0, 2)
    assert str(caught.value).startswith("--rollout-function-path")


async def test_log_probs_that_somebody_needs_are_asked_for(file: Path) -> None:
    with pytest.raises(GenerateError, match=r"no rollout_log_probs .* --use-tis needs them"):
        await function(file, "generate_rollout", log_probs_for="--use-tis")(0, 1)


async def test_whatever_it_raises_is_told_with_its_line(file: Path) -> None:
    with pytest.raises(UserFunctionError) as caught:
        await function(file, "leaves")(0, 1)
    said = f"SystemExit: no server (--rollout-function-path, {file} line "
    assert str(caught.value).startswith(said)


async def test_what_is_given_back_comes_first() -> None:
    buffer = DataBuffer(Prompts())
    first, second = buffer.get_samples(2)
    buffer.add_samples([second])
    again = buffer.get_samples(2)
    assert [g[0].prompt for g in (first, *again)] == ["0", "1", "2"]
    assert [g[0].group_index for g in (first, *again)] == [0, 2, 3]


async def test_an_evaluation_says_that_it_is_one(file: Path) -> None:
    evaluation = EvalFunction(f"{file}:evaluates", SimpleNamespace(), Prompts())
    assert await evaluation(4) == {"seen": {"rewards": [1.0, 4]}}
