"""The whole objective on a model small enough to look through: against a loop, and however its
samples are cut and ordered."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from configs.corrections import PRESETS, correction_of
from configs.schema import AlgorithmConfig
from pipeline.core.histogram import Histogram
from stages.learn.corrections import batch_evidence, batch_statistics
from stages.learn.losses import compute_log_probs_from_logits
from stages.learn.objective import penalised_rewards, policy_objective, shaped_advantages
from stages.learn.outcome import ObjectiveExtras, policy_metrics
from stages.learn.user_objective import custom_objective
from tests.unit.tokens import FakeSample, FakeTokens, make_model, make_samples, pack

LENGTHS = [4, 1, 9, 6, 2, 5, 3]
CONFIGS: dict[str, dict[str, Any]] = {
    **{name: {"off_policy_correction": name} for name in PRESETS},
    "normalised": {
        "off_policy_correction": "seq-tis",
        "correction_batch_normalize": True,
        "correction_veto_threshold": 0.05,
    },
    "gspo": {"advantage_estimator": "gspo", "eps_clip": 0.05, "use_tis": True},
    "cispo": {"advantage_estimator": "cispo", "eps_clip_high": 1.0},
    "dual-clip": {"eps_clip_c": 1.2, "use_rollout_logprobs": True},
    "kl-loss": {
        "use_kl_loss": True,
        "kl_loss_coef": 0.3,
        "kl_loss_type": "low_var_kl",
        "use_unbiased_kl": True,
        "entropy_coef": 0.01,
    },
    "kl-reward": {"kl_coef": 0.2, "kl_loss_type": "k2"},
    "opsm-and-tis": {"use_opsm": True, "opsm_delta": 0.1, "use_tis": True},
    "staleness": {"staleness_clip_decay": 0.7},
    "sft": {"loss_type": "sft_loss"},
}


def extras_of(batch: FakeTokens, config: AlgorithmConfig, **more: Any) -> ObjectiveExtras:
    return ObjectiveExtras(ref=batch.ref if config.use_kl_loss or config.kl_coef else None, **more)


def step(
    parts: Sequence[Sequence[FakeSample]],
    config: AlgorithmConfig,
    table: Tensor,
    dtype: torch.dtype = torch.float32,
) -> tuple[float, Tensor, Tensor, Tensor]:
    """One optimizer step over micro-batches (of any ranks): (loss, gradient, sums, maxima)."""
    model = table.to(dtype, copy=True).requires_grad_()
    batches = [pack(p, dtype) for p in parts if p]
    every = [s for p in parts for s in p]
    num_samples, num_tokens = sum(s.weight for s in every), sum(len(s.targets) for s in every)
    denominator = float(num_tokens if config.calculate_per_token_loss else num_samples)
    correction = correction_of(config)
    numerators = [
        (
            torch.log_softmax(table.to(dtype), -1)[b.contexts, b.targets]
            if correction.ratio == "bypass"
            else b.old
        )
        for b in batches
    ]
    evidence = [
        batch_evidence(correction, n, b.rollout_log_probs, b.advantages, b.token_counts, b.shares)
        for n, b in zip(numerators, batches, strict=True)
    ]
    statistics = batch_statistics(correction, evidence)
    outcomes = []
    for b in batches:
        now = compute_log_probs_from_logits(model[b.contexts], b.targets)
        outcomes.append(
            policy_objective(
                now, b.old, b, config, denominator, extras_of(b, config, statistics=statistics)
            )
        )
        outcomes[-1].loss.backward()
    assert model.grad is not None
    sums, maxima = sum(o.sums for o in outcomes), torch.stack([o.maxima for o in outcomes]).amax(0)
    return sum(o.loss.item() for o in outcomes), model.grad, torch.as_tensor(sums), maxima


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=12)
@given(
    seed=st.integers(0, 50),
    order=st.permutations(range(len(LENGTHS))),
    cuts=st.lists(st.integers(0, len(LENGTHS)), max_size=3),
)
def test_order_micro_batches_and_ranks_change_nothing(
    name: str, per_token: bool, seed: int, order: list[int], cuts: list[int]
) -> None:
    """A data-parallel rank is some of the micro-batches: gradients and sums are added up over both
    alike."""
    config = AlgorithmConfig(**CONFIGS[name], calculate_per_token_loss=per_token)
    samples, table = make_samples(LENGTHS, seed, spread=0.5), make_model(seed)
    loss, grad, sums, maxima = step([samples], config, table)
    bounds = [0, *sorted(cuts), len(samples)]
    shuffled = [samples[i] for i in order]
    other = step([shuffled[a:b] for a, b in itertools.pairwise(bounds)], config, table)
    scale = max(1.0, abs(loss), float(grad.abs().max()))
    assert other[0] == pytest.approx(loss, abs=1e-6 * scale)
    assert (other[1] - grad).abs().max() < 1e-6 * scale
    assert torch.allclose(other[2], sums, rtol=1e-5, atol=1e-5)
    assert torch.equal(other[3], maxima)


@pytest.mark.parametrize("name", ["mis", "icepop"])
def test_dr_grpos_constant_divides_what_a_correction_keeps(name: str) -> None:
    """The sum over the kept tokens of a sample over the constant, with either way of taking
    means."""
    config = AlgorithmConfig(
        advantage_estimator="dr_grpo", off_policy_correction=name, correction_high=1.5
    )  # type: ignore[arg-type]
    samples, table = (
        [dataclasses.replace(s, norm_length=20) for s in make_samples(LENGTHS, 8, spread=0.5)],
        make_model(8),
    )
    total, dropped = 0.0, 0
    log_p = torch.log_softmax(table.double(), -1)
    for s in samples:
        for c, t, rollout, old in zip(
            s.contexts, s.targets, s.rollout_log_probs, s.old, strict=True
        ):
            weight, ratio = math.exp(old - rollout), math.exp(float(log_p[c, t]) - old)
            if 0.5 <= weight <= 1.5:
                total += (
                    weight
                    * max(-ratio * s.advantage, -min(max(ratio, 0.8), 1.2) * s.advantage)
                    / 20
                )
            else:
                dropped += 1
    assert dropped > 3
    assert step([samples], config, table)[0] == pytest.approx(total / len(samples), abs=1e-6)


def test_ppos_penalty_is_in_the_rewards_once() -> None:
    """Token rewards less kl_coef * KL(old || reference); the advantages that come back from the
    critic are left alone."""
    config = AlgorithmConfig(advantage_estimator="ppo", kl_coef=0.3)
    batch = pack(make_samples(LENGTHS, 2, spread=0.5), torch.float64)
    got = penalised_rewards(batch, batch.old, batch.ref, config)
    want = [
        a - 0.3 * (o - r)
        for a, o, r in zip(
            batch.advantages.tolist(), batch.old.tolist(), batch.ref.tolist(), strict=True
        )
    ]
    assert got.tolist() == pytest.approx(want)
    assert shaped_advantages(batch, batch.old, batch.ref, config) is batch.advantages


def loop_loss(samples: Sequence[FakeSample], table: Tensor, config: AlgorithmConfig) -> Tensor:
    """PPO with token-level TIS, entropy and a k3 KL, as the formula reads, a token at a time."""
    log_p = torch.log_softmax(table, -1)
    total = torch.zeros((), dtype=torch.float64)
    for s in samples:
        losses = []
        for c, t, rollout, old, ref in zip(
            s.contexts, s.targets, s.rollout_log_probs, s.old, s.ref, strict=True
        ):
            shrink = 1 / (1 + config.staleness_clip_decay * s.staleness)
            ratio = (log_p[c, t] - old).exp()
            bounded = ratio.clamp(1 - 0.2 * shrink, 1 + 0.28 * shrink)
            advantage = s.advantage - config.kl_coef * (math.exp(ref - old) - 1 + old - ref)
            x = log_p[c, t] - ref
            loss = (
                torch.maximum(-ratio * advantage, -bounded * advantage)
                + config.kl_loss_coef * ((-x).exp() - 1 + x)
            ) * min(math.exp(old - rollout), 2.0)
            loss = loss + 0.01 * (log_p[c].exp() * log_p[c]).sum()
            losses.append(loss)
        total = total + sum(losses) / len(losses)
    return total / len(samples)


@pytest.mark.parametrize(
    "more",
    [{"kl_loss_coef": 0.3, "use_kl_loss": True}, {"kl_coef": 0.5}, {"staleness_clip_decay": 0.5}],
)
def test_against_a_loop(more: dict[str, Any]) -> None:
    config = AlgorithmConfig(
        use_tis=True, eps_clip_high=0.28, entropy_coef=0.01, kl_loss_type="k3", **more
    )
    samples, table = make_samples(LENGTHS, 3, spread=0.6), make_model(3)
    loss, grad, _, _ = step([samples], config, table)
    twin = table.double().requires_grad_()
    want = loop_loss(samples, twin, config)
    want.backward()
    assert twin.grad is not None
    assert loss == pytest.approx(want.item(), abs=1e-5)
    assert (grad - twin.grad).abs().max() < 1e-5


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "none"])
def test_on_policy_a_correction_changes_nothing(name: str) -> None:
    samples, table = make_samples(LENGTHS, 9, spread=0.0), make_model(9)
    plain = step([samples], AlgorithmConfig(), table)
    got = step([samples], AlgorithmConfig(off_policy_correction=name), table)  # type: ignore[arg-type]
    assert got[0] == pytest.approx(plain[0], abs=1e-6)
    assert (got[1] - plain[1]).abs().max() < 1e-6


def test_a_dropped_sample_is_not_trained_and_means_are_over_the_kept() -> None:
    """mis: the mean is over what is left; icepop with its bounds: dropped tokens count as zeros."""
    samples, table = make_samples([8] * 6, 2, spread=0.8), make_model(2)
    batch = pack(samples)
    ratio = (batch.old - batch.rollout_log_probs).exp()
    kept = ((ratio >= 0.5) & (ratio <= 2.0)).view(6, 8)
    assert 0 < kept.sum() < 48
    mis = step([samples], AlgorithmConfig(off_policy_correction="mis"), table)[0]
    ice = step(
        [samples], AlgorithmConfig(off_policy_correction="icepop", correction_high=2.0), table
    )[0]
    now = torch.log_softmax(table, -1)[batch.contexts, batch.targets]
    r = (now - batch.old).exp()
    each = (
        torch.maximum(-r * batch.advantages, -r.clamp(0.8, 1.2) * batch.advantages) * ratio
    ).view(6, 8) * kept
    assert mis == pytest.approx((each.sum(1) / kept.sum(1).clamp(min=1)).mean().item(), abs=1e-6)
    assert ice == pytest.approx((each.sum(1) / 8).mean().item(), abs=1e-6)


def test_metrics_by_staleness_against_a_loop() -> None:
    samples, table = make_samples([40, 7, 31, 12, 25, 60], 6, spread=0.4), make_model(6)
    config = AlgorithmConfig(off_policy_correction="icepop")
    _, _, sums, maxima = step([samples[:2], samples[2:]], config, table, torch.float64)
    got = policy_metrics(sums, maxima)

    def bucket(s: int) -> str:
        return "0" if s == 0 else "1" if s == 1 else "2-3" if s < 4 else "4-7" if s < 8 else "8+"

    groups: dict[str, list[float]] = {"": []}
    for s in samples:
        x = [a - b for a, b in zip(s.old, s.rollout_log_probs, strict=True)]
        groups[""] += x
        groups.setdefault(f"/staleness_{bucket(s.staleness)}", []).extend(x)
    assert len(groups) > 3
    for suffix, x in groups.items():
        w = [math.exp(v) for v in x]
        assert got["ess_fraction" + suffix] == pytest.approx(
            sum(w) ** 2 / len(w) / sum(v * v for v in w)
        )
        assert got["kl_rollout_old_k1" + suffix] == pytest.approx(-sum(x) / len(x))
        assert got["kl_rollout_old" + suffix] == pytest.approx(
            sum(math.exp(v) - 1 - v for v in x) / len(x)
        )
        assert got["masked_fraction" + suffix] == pytest.approx(
            sum(not 0.5 <= v <= 5 for v in w) / len(w)
        )
        for name, q in (("p01", 0.01), ("p50", 0.5), ("p99", 0.99)):
            exact = sorted(w)[max(0, math.ceil(q * len(w)) - 1)]
            assert got[f"rollout_ratio_{name}{suffix}"] == pytest.approx(exact, rel=0.0102)
    inner = Histogram.of_log_ratio(got)
    assert inner is not None and sum(inner.counts) == len(groups[""])
    for i, count in enumerate(inner.counts[1:-1], start=1):
        # a value within a rounding error of an edge may be on either side
        sure = sum(inner.edges[i] + 1e-5 < x < inner.edges[i + 1] - 1e-5 for x in groups[""])
        near = sum(min(abs(x - e) for e in inner.edges[i : i + 2]) <= 1e-5 for x in groups[""])
        assert sure <= count <= sure + near
    assert {k for k in got if k.startswith("ess_fraction")} == {"ess_fraction" + g for g in groups}


def test_a_ratio_of_one_is_exactly_one() -> None:
    samples = make_samples([9, 4], 1, spread=0.0)
    got = policy_metrics(*step([samples], AlgorithmConfig(), make_model(1))[2:])
    assert [got[f"rollout_ratio_{q}"] for q in ("p01", "p50", "p99")] == [1.0, 1.0, 1.0]


def test_custom_tis_function_has_slimes_signature() -> None:
    """The vanilla one of slime, as a user would write it, is --use-tis; masks take tokens out of
    the means."""
    seen: dict[str, Any] = {}

    def tis(
        args: Any,
        *,
        pg_loss: Tensor,
        train_log_probs: list[Tensor],
        rollout_log_probs: list[Tensor],
        loss_masks: list[Tensor],
        total_lengths: list[int],
        response_lengths: list[int],
    ) -> Any:
        seen.update(args=args, total=total_lengths, response=response_lengths)
        ratio = (torch.cat(train_log_probs) - torch.cat(rollout_log_probs)).exp()
        return pg_loss * ratio.clamp(0.0, 2.0), loss_masks, {"my_ratio": ratio}

    config, table = AlgorithmConfig(use_tis=True), make_model(4)
    batch = pack(make_samples(LENGTHS, 4, spread=0.6))
    now = compute_log_probs_from_logits(table[batch.contexts], batch.targets)
    want = policy_objective(now, batch.old, batch, config, 7.0)
    got = policy_objective(
        now, batch.old, batch, config, 7.0, ObjectiveExtras(tis_function=tis, args="args")
    )
    assert got.loss.item() == pytest.approx(want.loss.item(), abs=1e-6)
    means = [
        (o.exp() / r.exp()).mean()
        for o, r in zip(
            batch.old.split(LENGTHS), batch.rollout_log_probs.split(LENGTHS), strict=True
        )
    ]
    assert got.extra["my_ratio"].item() == pytest.approx(float(sum(means)), rel=1e-5)
    assert seen == {"args": "args", "total": [n + 3 for n in LENGTHS], "response": LENGTHS}


def test_custom_loss_function_has_slimes_signature() -> None:
    config, table = AlgorithmConfig(loss_type="custom_loss"), make_model(4).requires_grad_()
    batch = pack(make_samples(LENGTHS, 4, spread=0.3))
    logits = table[batch.contexts][None]
    now = compute_log_probs_from_logits(logits[0], batch.targets)

    def loss(
        args: Any, given: dict[str, Any], logits: Tensor, sum_of_sample_mean: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        log_probs = torch.log_softmax(logits[0], -1).gather(-1, given["targets"][:, None])[:, 0]
        per_token = -log_probs * torch.cat(given["advantages"])
        return sum_of_sample_mean(per_token), {
            "twice": 2 * sum_of_sample_mean(torch.ones_like(per_token))
        }

    got = custom_objective(
        loss, logits, now, batch.old, batch, 7.0, config, ObjectiveExtras(args=None)
    )
    own = torch.log_softmax(table, -1)[batch.contexts, batch.targets]
    want = (
        sum(
            (-lp * a).mean()
            for lp, a in zip(own.split(LENGTHS), batch.advantages.split(LENGTHS), strict=True)
        )
        / 7.0
    )
    assert got.loss.item() == pytest.approx(want.item(), abs=1e-6)
    assert got.extra["twice"].item() == pytest.approx(14.0)
    got.loss.backward()
    assert table.grad is not None and table.grad.abs().max() > 0
    assert policy_metrics(got.sums, got.maxima)["loss"] == pytest.approx(got.loss.item())


@pytest.mark.parametrize("name", ["opsm", "m2po", "dppo", "normalised"])
def test_the_anchor_and_the_statistics_are_the_corrections(name: str) -> None:
    """The bypass: PPO's ratio is new over rollout, clipped by opsm only. Normalised weights:
    divided by their mean over the step."""
    samples, table = make_samples(LENGTHS, 12, spread=0.5), make_model(12)
    loss, grad, _, _ = step([samples[:3], samples[3:]], AlgorithmConfig(**CONFIGS[name]), table)
    twin = table.double().requires_grad_()
    batch = pack(samples, torch.float64)
    now = torch.log_softmax(twin, -1)[batch.contexts, batch.targets]
    x = now.detach() - batch.rollout_log_probs
    parts = list(zip(x.split(LENGTHS), batch.advantages.split(LENGTHS), strict=True))
    weight, ratio = torch.ones_like(x), (now - batch.rollout_log_probs).exp()
    bounded = ratio
    if name == "opsm":
        weight = torch.cat([((a >= 0) | (-v.mean() <= 0.05)).double() for v, a in parts])
        bounded = ratio.clamp(0.8, 1.2)
    elif name == "dppo":
        change = now.detach().exp() - batch.rollout_log_probs.exp()
        weight = torch.where(batch.advantages > 0, change <= 0.2, change >= -0.2).double()
    elif name == "m2po":
        outward = sorted(
            float(v) ** 2 for v, a in zip(x, batch.advantages, strict=True) if v * a > 0
        )
        while sum(outward) / len(outward) > 0.04:
            outward.pop()
        weight = ((x * batch.advantages <= 0) | (x.square() <= outward[-1])).double()
    else:
        ratio = (now - batch.old).exp()
        bounded = ratio.clamp(0.8, 1.2)
        gaps = (batch.old - batch.rollout_log_probs).split(LENGTHS)
        kept = [bool((g.exp() >= 0.05).all()) for g in gaps]
        each = [min(math.exp(g.sum().item()), 2.0) for g in gaps]
        mean = sum(w for w, k in zip(each, kept, strict=True) if k) / sum(kept)
        weight = torch.cat(
            [torch.full_like(g, w * k / mean) for g, w, k in zip(gaps, each, kept, strict=True)]
        )
    assert (weight != 1).sum() > 0
    per_token = torch.maximum(-ratio * batch.advantages, -bounded * batch.advantages) * weight
    want = torch.stack([part.mean() for part in per_token.split(LENGTHS)]).mean()
    want.backward()
    assert twin.grad is not None
    assert loss == pytest.approx(want.item(), abs=1e-5)
    assert (grad - twin.grad).abs().max() < 1e-5
