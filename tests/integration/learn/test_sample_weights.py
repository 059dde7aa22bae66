"""What a sample weighs in the learner: several samples of one rollout count as one, and Dr.

GRPO's constant divides token sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.types import TrainSample
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


@pytest.mark.parametrize("per_token", [False, True], ids=["per-sample", "per-token"])
def test_a_rollout_of_three_equal_samples_is_one_rollout(
    step: Callable[..., Any], per_token: bool
) -> None:
    once = cases.make_samples(cases.LENGTHS)
    thrice = [dataclasses.replace(s, weight=1 / 3) for s in once[:2] for _ in range(3)] + once[2:]
    flags = {"calculate_per_token_loss": per_token, "entropy_coef": 0.01}
    assert_same(step(thrice, **flags), step(once, **flags))


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
