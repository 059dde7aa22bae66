"""The token that true-on-policy mode names, and the arguments of user functions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from configs.flags import own_flags
from configs.schema import OPTIMIZER_DEFAULTS, AlgorithmConfig, Config, flat_args
from pipeline.core.errors import ConfigError
from stages.learn.settings import LearnerSettings
from stages.learn.step_objective import LargestGap, StepObjective, worst_mismatch

COUNTS = [3, 1, 4]


@pytest.mark.parametrize(
    ("at", "sample", "place"), [(0, 70, 0), (2, 70, 2), (3, 71, 0), (4, 72, 0), (7, 72, 3)]
)
def test_the_worst_token_is_named(at: int, sample: int, place: int) -> None:
    rollout = torch.full((8,), -1.0)
    old = rollout + 1e-4
    old[at] += 0.5
    batch = SimpleNamespace(
        rollout_log_probs=rollout,
        token_counts=torch.tensor(COUNTS),
        sample_indices=torch.tensor([70, 71, 72]),
        targets=torch.arange(8) + 100,
    )
    got = worst_mismatch(old, batch)
    assert got.mismatch == pytest.approx(torch.tensor(0.5001).expm1().item(), rel=1e-4)
    assert got.token.startswith(f"trained token {place} of sample {sample} (token id {100 + at})")
    assert worst_mismatch(torch.zeros(0), batch) == LargestGap()


def settings(**flags: object) -> LearnerSettings:
    config = Config(
        algorithm=AlgorithmConfig(**flags),  # type: ignore[arg-type]
        megatron={"adam_beta2": 0.5},
        sglang={"log_level": "info"},
    )
    return LearnerSettings(config=config)


def test_user_functions_find_the_flags_in_args() -> None:
    """The same on the learner's ranks as on the driver: every flag of ours, and those that were
    given of the others."""
    given = settings(tis_clip=3.0)
    args = StepObjective(given).args
    assert vars(args) == vars(flat_args(given.config))
    assert {flag.field for flag in own_flags().values()} <= set(vars(args))
    assert (args.tis_clip, args.lr, args.adam_beta2, args.sglang_log_level) == (
        3.0,
        OPTIMIZER_DEFAULTS["lr"],
        0.5,
        "info",
    )


def test_a_user_function_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        StepObjective(settings(loss_type="custom_loss", custom_loss_function_path="nowhere.py"))


def test_what_needs_log_probs_ahead() -> None:
    assert StepObjective(settings()).needs_old and not StepObjective(settings()).needs_reference
    assert not StepObjective(settings(use_rollout_logprobs=True)).needs_old
    assert StepObjective(settings(use_rollout_logprobs=True, kl_coef=0.1)).needs_old
    assert StepObjective(settings(advantage_estimator="ppo", kl_coef=0.1)).needs_old_at_first
    assert (
        not StepObjective(settings(advantage_estimator="ppo")).needs_old_at_first
        and not StepObjective(settings(kl_coef=0.1)).needs_old_at_first
    )
    assert (
        StepObjective(settings(kl_coef=0.1)).needs_reference
        and StepObjective(settings(use_kl_loss=True)).needs_reference
    )
