"""PPO's critic in the real learner: values and gradients against plain torch, learning,
checkpoints, critic-only rollouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema import CriticConfig
from pipeline.core.errors import CheckpointError, LearnerError
from tests.integration.learn import learner_cases as cases

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
MODELS = [("qwen3", True), ("llama", False)]


@pytest.fixture(scope="module", params=MODELS, ids=["qwen3-tied", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, tied = request.param
    return cases.make_model(kind, tmp_path_factory.mktemp("model") / kind, tied=tied)


@pytest.fixture
def make_rank(folder: Path) -> Iterator[Callable[..., Any]]:
    from stages.learn.megatron import start_rank

    ranks: list[Any] = []

    def make(critic: CriticConfig | None = None, **flags: Any) -> Any:
        for old in ranks:
            old.close()
        settings = cases.settings(folder, critic=critic, **{"advantage_estimator": "ppo", **flags})
        ranks[:] = [start_rank(settings)]
        return ranks[0]

    yield make
    for rank in ranks:
        rank.close()


def samples(seed: int = 0) -> list[Any]:
    """As the advantage stage hands them to a critic: the reward at the last trained token."""
    made = cases.make_samples(cases.LENGTHS, seed=seed)
    rewards = np.random.default_rng(seed + 50).normal(1.0, 0.5, len(made))
    for s, reward in zip(made, rewards, strict=True):
        s.advantages[:] = 0.0
        s.advantages[np.flatnonzero(s.loss_mask)[-1]] = reward
    return made


def two_steps(rollout_id: int = 0) -> Any:
    made = samples(rollout_id)
    return cases.make_batch(
        cases.make_step(made[:4], micro_batches=2), cases.make_step(made[4:]), rollout_id=rollout_id
    )


def without_time(metrics: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k not in cases.MEASURED}


class Reference:
    """The critic in plain torch: transformers' backbone and one linear output."""

    def __init__(self, folder: Path) -> None:
        self.backbone = cases.load_hf(folder).model
        self.head = torch.zeros(1, 64, requires_grad=True)

    def values(self, sample: Any) -> torch.Tensor:
        """[trained tokens]"""
        hidden = self.backbone(torch.from_numpy(sample.tokens)[None]).last_hidden_state[0]
        rows = sample.num_tokens - sample.response_length - 1 + np.flatnonzero(sample.loss_mask)
        return (hidden[rows] @ self.head.T)[:, 0]

    def loss(
        self, made: list[Any], old: list[list[float]], gamma: float, lambd: float, clip: float
    ) -> torch.Tensor:
        total = torch.zeros(())
        for s, old_values in zip(made, old, strict=True):
            rewards = [float(a) for a, m in zip(s.advantages, s.loss_mask, strict=True) if m]
            running, returns = 0.0, []
            for t in reversed(range(len(rewards))):
                following = old_values[t + 1] if t + 1 < len(rewards) else 0.0
                running = rewards[t] + gamma * following - old_values[t] + gamma * lambd * running
                returns.insert(0, running + old_values[t])
            per_token = []
            for v, o, r in zip(self.values(s), old_values, returns, strict=True):
                per_token.append(
                    torch.maximum((v - r) ** 2, (o + (v - o).clamp(-clip, clip) - r) ** 2)
                )
            total = total + sum(per_token) / len(per_token) / len(made)
        return total


def test_value_steps_equal_plain_torch(folder: Path, make_rank: Callable[..., Any]) -> None:
    """Loss and gradient norm of two rollouts: the head starts at 0, so the first moves only the
    head, the second everything."""
    gamma, lambd, clip = 0.95, 0.9, 0.01
    # As in test_learner_step: a larger eps than usual, or gradients of rounding size would become
    # updates of full size.
    rank = make_rank(
        CriticConfig(critic_lr=1e-2, value_clip=clip),
        gamma=gamma,
        lambd=lambd,
        megatron={"clip_grad": 0.5, "adam_eps": 1e-4},
    )
    reference = Reference(folder)
    parameters = [reference.head, *(p for p in reference.backbone.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, eps=1e-4, weight_decay=0.0)
    for rollout_id in range(3):
        made = samples(rollout_id)
        got = cases.step(
            rank,
            cases.make_batch(
                cases.make_step(made[:4], micro_batches=2),
                cases.make_step(made[4:]),
                rollout_id=rollout_id,
            ),
        )
        with torch.no_grad():
            old = [reference.values(s).tolist() for s in made]
        losses, norms = [], []
        for half, old_half in ((made[:4], old[:4]), (made[4:], old[4:])):
            optimizer.zero_grad()
            loss = reference.loss(half, old_half, gamma, lambd, clip)
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, 0.5)))
            optimizer.step()
            losses.append(loss.item())
        assert got["value_loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
        assert got["critic_grad_norm"] == pytest.approx(sum(norms) / 2, rel=1e-3)
        assert got["critic_lr"] == 1e-2 and got["lr"] == 1e-3
    assert got["value_clip_fraction"] > 0


def test_the_policy_is_given_gae_of_the_critics_values(make_rank: Callable[..., Any]) -> None:
    """With the head at 0 and lambda 1 the advantages are the discounted returns: a grpo learner
    given those takes the same step."""
    made, gamma = samples(), 0.9
    # else gradients of rounding size become updates of full size
    ppo = make_rank(gamma=gamma, megatron={"adam_eps": 1e-4})
    got = cases.step(ppo, cases.make_batch(cases.make_step(made, micro_batches=2)))
    weights = cases.weights_of(ppo)
    returns = []
    for s in made:
        trained = np.flatnonzero(s.loss_mask)
        advantages = np.zeros(s.response_length, np.float32)
        advantages[trained] = [
            s.advantages[trained[-1]] * gamma ** (len(trained) - 1 - k) for k in range(len(trained))
        ]
        returns.append(dataclasses.replace(s, advantages=advantages))
    plain = make_rank(advantage_estimator="grpo", megatron={"adam_eps": 1e-4})
    want = cases.step(plain, cases.make_batch(cases.make_step(returns, micro_batches=2)))
    assert got["loss"] == pytest.approx(want["loss"], abs=1e-6) and got[
        "grad_norm"
    ] == pytest.approx(want["grad_norm"], rel=1e-5)
    assert all((weights[name] - tensor).abs().max() < 1e-6 for name, tensor in plain.hf_weights())


def test_the_reference_kl_is_in_the_rewards(
    folder: Path, make_rank: Callable[..., Any], tmp_path: Path
) -> None:
    """--kl-coef with ppo: token rewards less the KL of the policy at consumption to the reference,
    discounted along with them."""
    gamma, coef = 0.9, 0.2
    reference = cases.make_model(
        "llama" if "llama" in folder.name else "qwen3",
        tmp_path / "ref",
        tied="llama" not in folder.name,
        seed=9,
    )
    policy, frozen = cases.load_hf(folder), cases.load_hf(reference)
    made, shaped = samples(), []
    for s in made:
        with torch.no_grad():
            kl = cases.token_log_probs(policy, s, 1.0) - cases.token_log_probs(frozen, s, 1.0)
        advantages, running = np.zeros(s.response_length, np.float32), 0.0
        for t in np.flatnonzero(s.loss_mask)[::-1]:
            running = float(s.advantages[t]) - coef * float(kl[t]) + gamma * running
            advantages[t] = running
        shaped.append(dataclasses.replace(s, advantages=advantages))

    def cut(of: list[Any]) -> Any:
        return cases.make_batch(cases.make_step(of[:4], micro_batches=2), cases.make_step(of[4:]))

    # else gradients of rounding size become full updates
    plain = make_rank(advantage_estimator="grpo", megatron={"adam_eps": 1e-4})
    want, weights = cases.step(plain, cut(shaped)), cases.weights_of(plain)
    ppo = make_rank(gamma=gamma, kl_coef=coef, ref_load=str(reference), megatron={"adam_eps": 1e-4})
    got = cases.step(ppo, cut(made))
    assert got["loss"] == pytest.approx(want["loss"], abs=1e-5) and got[
        "grad_norm"
    ] == pytest.approx(want["grad_norm"], rel=1e-4)
    assert all((weights[name] - tensor).abs().max() < 1e-5 for name, tensor in ppo.hf_weights())
    assert abs(got["kl_ref"]) > 0.01  # k1 may be negative


def test_the_value_loss_falls_on_a_fixed_batch(make_rank: Callable[..., Any]) -> None:
    rank = make_rank(CriticConfig(critic_lr=3e-3, value_clip=10.0))
    found = [cases.step(rank, two_steps()) for _ in range(30)]
    assert found[-1]["value_loss"] < 0.1 * found[0]["value_loss"]
    assert found[0]["explained_variance"] < 0.3 and found[-1]["explained_variance"] > 0.6


def test_resume_restores_the_critic(make_rank: Callable[..., Any], tmp_path: Path) -> None:
    rank = make_rank(CriticConfig(critic_lr_warmup_iters=3))
    cases.step(rank, two_steps(0))
    rank.save(tmp_path / "1")
    want = [without_time(cases.step(rank, two_steps(i))) for i in (1, 2)]
    resumed = make_rank(CriticConfig(critic_lr_warmup_iters=3))
    resumed.load(tmp_path / "1")
    assert [without_time(cases.step(resumed, two_steps(i))) for i in (1, 2)] == want
    # the critic alone
    loaded = make_rank(CriticConfig(critic_lr_warmup_iters=3, critic_load=str(tmp_path / "1")))
    first = cases.step(loaded, two_steps(1))
    assert first["value_loss"] == want[0]["value_loss"] and first["loss"] != want[0]["loss"]


def test_a_snapshot_without_a_critic_is_named(
    make_rank: Callable[..., Any], tmp_path: Path
) -> None:
    rank = make_rank(advantage_estimator="grpo")
    rank.save(tmp_path / "1")
    assert not (tmp_path / "1" / "critic").exists()
    with pytest.raises(CheckpointError, match=r"1/critic.*metadata\.json is missing"):
        make_rank().load(tmp_path / "1")


def test_critic_only_rollouts_leave_the_policy_alone(make_rank: Callable[..., Any]) -> None:
    rank = make_rank(CriticConfig(num_critic_only_steps=2))
    before = cases.weights_of(rank)
    for rollout_id in range(2):
        metrics = cases.step(rank, two_steps(rollout_id))
        assert (
            metrics["lr"] == metrics["grad_norm"] == 0.0
            and metrics["critic_grad_norm"] > 0
            and metrics["entropy"] > 0
        )
        assert all(torch.equal(before[name], tensor) for name, tensor in rank.hf_weights())
    metrics = cases.step(rank, two_steps(2))
    assert metrics["lr"] == 1e-3 and any(
        not torch.equal(before[name], tensor) for name, tensor in rank.hf_weights()
    )


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"off_policy_correction": "m2po", "kl_coef": 0.1},
        {"use_tis": True, "correction_batch_normalize": True},
    ],
)
def test_a_critic_only_rollout_measures_what_a_policy_step_does(
    make_rank: Callable[..., Any], flags: dict[str, Any]
) -> None:
    one = cases.make_batch(cases.make_step(samples()[:4], micro_batches=2))
    look = cases.step(make_rank(CriticConfig(num_critic_only_steps=1), **flags), one)
    taken = cases.step(make_rank(**flags), one)
    assert look.keys() == taken.keys()
    for name in look.keys() - cases.MEASURED - {"lr", "grad_norm"}:
        assert look[name] == pytest.approx(taken[name], abs=1e-6), name


def test_whitened_advantages_do_not_depend_on_the_rewards_scale(
    make_rank: Callable[..., Any],
) -> None:
    def loss(scale: float) -> float:
        made = samples()
        for s in made:
            s.advantages[:] *= scale
        return cases.step(
            make_rank(normalize_advantages=True), cases.make_batch(cases.make_step(made))
        )["loss"]

    assert loss(1.0) == pytest.approx(loss(100.0), rel=1e-4)


def test_a_value_that_is_not_finite_is_refused(make_rank: Callable[..., Any]) -> None:
    rank = make_rank()
    made = samples()
    made[0].advantages[:] = float("nan")
    before = cases.weights_of(rank)
    with pytest.raises(LearnerError, match="critic step 1 of 1: value loss nan"):
        cases.step(rank, cases.make_batch(cases.make_step(made)))
    assert all(torch.equal(before[name], tensor) for name, tensor in rank.hf_weights())
