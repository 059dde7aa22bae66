"""What is said when a run starts, of flags that do not do all that one may think."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from configs.rules.cautions import cautions
from configs.schema import (
    AlgorithmConfig,
    AsyncConfig,
    Config,
    EvalConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
)


def said(algorithm: dict[str, Any], **rollout: Any) -> list[str]:
    config = Config(algorithm=AlgorithmConfig(**algorithm), rollout=RolloutConfig(**rollout))
    return list(cautions(config))


CORRECTED: list[dict[str, Any]] = [
    {"use_tis": True},
    {"off_policy_correction": "icepop"},
    {"off_policy_correction": "geo-rs"},
    {"correction_veto_threshold": 1e-4},
    {"custom_tis_function_path": "mine.py"},
    {"use_rollout_logprobs": True},
]


@pytest.mark.parametrize("algorithm", CORRECTED)
def test_truncated_sampling_with_a_correction_says_what_is_exact(algorithm: dict[str, Any]) -> None:
    assert said(algorithm) == []
    (top_p,) = said(algorithm, rollout_top_p=0.9)
    (top_k,) = said(algorithm, rollout_top_k=50)
    (both,) = said(algorithm, rollout_top_k=50, rollout_top_p=0.9)
    assert top_p.startswith("--rollout-top-p 0.9 with an importance correction")
    assert "a token's ratio is exact. As a weight it is not" in top_p
    assert "at least 0.9 a token" in top_p and "which no engine tells" in top_k
    assert both.startswith("--rollout-top-p 0.9 and --rollout-top-k 50 with")


def test_without_a_correction_or_a_learner_there_is_no_weight_to_speak_of() -> None:
    assert said({}, rollout_top_p=0.5, rollout_top_k=5) == []
    config = Config(
        run=RunConfig(debug_rollout_only=True),
        algorithm=AlgorithmConfig(use_tis=True),
        rollout=RolloutConfig(rollout_top_p=0.5),
    )
    assert list(cautions(config)) == []


def test_a_weight_times_the_kept_share_is_the_exact_one() -> None:
    """What the caution claims: with w = old/rollout of the whole softmax and Z the kept share, the
    mean of w Z f under what the engine samples from is old's over the kept part."""
    rng = np.random.default_rng(0)
    rollout, old, f = rng.dirichlet(np.ones(20)), rng.dirichlet(np.ones(20)), rng.normal(size=20)
    order = np.argsort(-rollout)
    kept = order[: np.searchsorted(np.cumsum(rollout[order]), 0.9) + 1]
    share = rollout[kept].sum()
    sampled = rollout[kept] / share
    weights = old[kept] / rollout[kept]
    assert share >= 0.9
    assert (sampled * weights * share * f[kept]).sum() == pytest.approx((old[kept] * f[kept]).sum())
    assert (sampled * weights).sum() == pytest.approx(old[kept].sum() / share)  # too large


def test_determinism_ahead_of_the_learner_says_what_it_cannot_keep() -> None:
    config = Config(megatron={"deterministic_mode": True})
    ahead = dataclasses.replace(config, async_=AsyncConfig(async_buffer_size=2))
    assert list(cautions(config)) == []
    (caution,) = cautions(ahead)
    assert caution.startswith("--deterministic-mode with --async-buffer-size 2")


def test_what_is_named_and_not_needed_is_said() -> None:
    evaluated = Config(eval=EvalConfig(eval_prompt_data=("a", "a.jsonl")))
    referred = Config(algorithm=AlgorithmConfig(ref_load="model"))
    (unread,), (idle,) = cautions(referred), cautions(evaluated)
    assert unread.startswith("--ref-load model: nothing uses a reference model")
    assert idle.startswith("--eval-prompt-data a a.jsonl without --eval-interval")
    used = Config(
        algorithm=AlgorithmConfig(ref_load="model", use_kl_loss=True),
        eval=EvalConfig(eval_prompt_data=("a", "a.jsonl"), eval_interval=0),
    )
    assert list(cautions(used)) == []


def test_a_function_that_must_reward_its_samples_is_told_so() -> None:
    own = RolloutConfig(custom_generate_function_path="mine.py")
    (told,) = cautions(Config(rollout=own))
    assert told.startswith("--custom-generate-function-path mine.py without --rm-type")
    assert list(cautions(Config(rollout=own, reward=RewardConfig(rm_type="random")))) == []
