"""What a sample weighs in the learner: the parts of one trajectory count as one, and Dr.

GRPO's constant divides token sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.types import TrainSample
from stages.advantage.shares import share_trajectories
from stages.batch import make_batch
from tests.integration.learn import learner_cases as cases

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.make_model("qwen3", tmp_path_factory.mktemp("model") / "m", tied=True)


@pytest.fixture
def step(folder: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """(loss, gradients by name) of one optimizer step of these samples on a fresh learner."""
    from stages.learn.megatron import start_rank

    ranks: list[Any] = []

    def run(samples: list[TrainSample], **flags: Any) -> dict[str, Any]:
        for old in ranks:
            old.close()
        ranks[:] = [
            start_rank(cases.settings(folder, megatron={"clip_grad": 0.0}, use_tis=True, **flags))
        ]
        batch = make_batch(samples, rollout_id=0, policy_version=0, num_dp_ranks=1, max_tokens=60)
        loss = cases.step(ranks[0], batch)["loss"]
        return {
            "loss": loss,
            **{name: grad.clone() for name, grad in cases.hf_gradients(ranks[0]).items()},
        }

    yield run
    for rank in ranks:
        rank.close()


def assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys() and got["loss"] == pytest.approx(want["loss"], abs=1e-6)
    assert abs(want["loss"]) > 1e-3
    for name in want.keys() - {"loss"}:
        assert (got[name] - want[name]).abs().max() < 1e-6, name


def test_three_equal_parts_of_one_trajectory_are_one_trajectory(step: Callable[..., Any]) -> None:
    once = cases.make_samples(cases.LENGTHS)
    thrice = share_trajectories(
        [dataclasses.replace(s, trajectory=i) for i, s in enumerate(once[:2]) for _ in range(3)]
        + once[2:]
    )
    assert_same(step(thrice, entropy_coef=0.01), step(once, entropy_coef=0.01))


def test_a_constant_divides_token_sums(step: Callable[..., Any]) -> None:
    """sum / L instead of sum / n: as advantages times n / L, as long as there is nothing but the
    surrogate."""
    made = cases.make_samples(cases.LENGTHS)
    constant = [dataclasses.replace(s, norm_length=40) for s in made]
    scaled = [
        dataclasses.replace(s, advantages=s.advantages * (int(s.loss_mask.sum()) / 40))
        for s in made
    ]
    assert_same(step(constant), step(scaled))
