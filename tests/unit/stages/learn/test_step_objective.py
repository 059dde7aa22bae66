"""The token that true-on-policy mode names, and the arguments of user functions."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.corrections import asks_for_log_probs
from configs.flags import own_flags
from configs.schema import OPTIMIZER_DEFAULTS, AlgorithmConfig, Config, DistillConfig, flat_args
from pipeline.core.errors import ConfigError, LearnerError
from pipeline.core.types import TrainSample
from stages.learn.settings import LearnerSettings
from stages.learn.step_objective import LargestGap, StepObjective, worst_mismatch
from stages.learn.trained_tokens import FlatTrainedTokens, trained_fields, with_known_log_probs

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


@pytest.mark.parametrize(
    ("flags", "asks"),
    [
        ({"off_policy_correction": "none"}, None),
        ({"use_tis": True}, "--use-tis"),
        ({"proximal": "loglinear"}, "--proximal loglinear"),
        ({"advantage_estimator": "opob"}, "--advantage-estimator opob"),
        ({"off_policy_correction": "icepop"}, "--off-policy-correction icepop"),
        ({"off_policy_correction": "none", "use_rollout_logprobs": True}, "--use-rollout-logprobs"),
        (
            {"off_policy_correction": "none", "correction_veto_threshold": 1e-4},
            "--correction-veto-threshold",
        ),
    ],
)
def test_who_asks_for_rollout_log_probs(flags: dict[str, object], asks: str | None) -> None:
    args = flat_args(Config(algorithm=AlgorithmConfig(**flags)))  # type: ignore[arg-type]
    assert asks_for_log_probs(args) == asks


def test_rollout_log_probs_that_are_left_out_are_the_old_ones() -> None:
    numbers = torch.zeros(1, dtype=torch.int64)
    batch = FlatTrainedTokens(
        targets=torch.arange(3),
        advantages=torch.ones(3),
        rollout_log_probs=torch.tensor([-1.0, math.nan, -3.0]),
        token_counts=numbers + 3,
        sample_lengths=numbers + 4,
        staleness=numbers,
        token_staleness=torch.zeros(3, dtype=torch.int64),
        sample_indices=numbers,
        group_indices=numbers,
        trajectories=numbers,
        shares=torch.ones(1),
        mean_weights=torch.ones(1),
        num_tokens=4,
    )
    known = with_known_log_probs(batch, torch.tensor([-5.0, -6.0, -7.0]))
    assert known.rollout_log_probs.tolist() == [-1.0, -6.0, -3.0]
    assert known.targets is batch.targets


def test_the_teachers_log_probs_are_those_of_trained_tokens() -> None:
    numbers = np.zeros(3, np.float32)
    own = {
        "tokens": np.arange(5),
        "response_length": 3,
        "rollout_log_probs": numbers,
        "advantages": numbers,
        "reward": 0.0,
        "staleness": 0,
        "group_index": 0,
    }
    teacher = np.array([-1, -2, -3], np.float32)
    with_one = TrainSample(index=0, loss_mask=np.array([1, 0, 1]), teacher_log_probs=teacher, **own)
    filler, without = (
        TrainSample(index=1, loss_mask=np.array(mask), **own) for mask in ([0, 0, 0], [0, 1, 0])
    )
    cpu = torch.device("cpu")
    got = trained_fields([with_one, filler, with_one], cpu)["teacher_log_probs"]
    assert got.tolist() == [-1, -3, -1, -3]
    assert trained_fields([without], cpu)["teacher_log_probs"] is None
    with pytest.raises(LearnerError, match="sample 1 has no teacher log-probs"):
        trained_fields([with_one, without], cpu)


def test_distillation_looks_back_at_the_policy_at_consumption() -> None:
    flags: dict[str, object] = {"use_rollout_logprobs": True}
    config = dataclasses.replace(
        settings(**flags).config, distill=DistillConfig(use_opd=True, opd_kl_coef=0.5)
    )
    assert StepObjective(LearnerSettings(config=config)).needs_old
    off = dataclasses.replace(config, distill=DistillConfig(opd_kl_coef=0.5))
    assert not StepObjective(LearnerSettings(config=off)).needs_old


def test_what_needs_log_probs_ahead() -> None:
    assert StepObjective(settings()).needs_old and not StepObjective(settings()).needs_reference
    assert not StepObjective(settings(use_rollout_logprobs=True)).needs_old
    assert not StepObjective(settings(proximal="loglinear", use_tis=True)).needs_old
    assert StepObjective(settings(proximal="loglinear", kl_coef=0.1)).needs_old
    assert StepObjective(settings(use_rollout_logprobs=True, kl_coef=0.1)).needs_old
    for name in ("ppo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "opob"):
        assert StepObjective(settings(advantage_estimator=name, kl_coef=0.1)).needs_old_at_first
    assert (
        not StepObjective(settings(advantage_estimator="ppo")).needs_old_at_first
        and not StepObjective(settings(kl_coef=0.1)).needs_old_at_first
    )
    assert (
        StepObjective(settings(kl_coef=0.1)).needs_reference
        and StepObjective(settings(use_kl_loss=True)).needs_reference
    )
