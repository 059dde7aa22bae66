"""Every correction against a loop in float64 that knows nothing of the table, and the identities of
off-policy correction."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.correction import Correction, Rejection, Weight, parse_rejection
from configs.corrections import PRESETS, correction_of
from configs.schema import AlgorithmConfig
from pipeline.core.errors import ConfigError
from stages.learn.corrections import (
    batch_evidence,
    batch_statistics,
    capped_cut,
    compute_correction,
)
from tests.unit.tokens import FakeTokens, make_samples, pack

LENGTHS = [4, 1, 9, 6, 2, 12]
# a sample: log-ratios, probabilities (numerator's), advantages
Row = tuple[list[float], list[float], list[float]]


def rows_of(batch: FakeTokens) -> list[Row]:
    """old over rollout, a sample a row."""
    out, at = [], 0
    for n in batch.token_counts.tolist():
        old, rollout = (
            batch.old[at : at + n].tolist(),
            batch.rollout_log_probs[at : at + n].tolist(),
        )
        out.append(
            (
                [a - b for a, b in zip(old, rollout, strict=True)],
                old,
                batch.advantages[at : at + n].tolist(),
            )
        )
        at += n
    return out


def mean(x: list[float]) -> float:
    return sum(x) / len(x)


# (log-ratios, place, advantages) -> (weight, kept)
Loop = Callable[[list[float], int, list[float]], tuple[float, bool]]


def token(x: list[float], t: int) -> float:
    return math.exp(x[t])


def k3(x: float) -> float:
    return math.exp(x) - 1 - x


LOOPS: dict[str, Loop] = {
    "none": lambda x, t, a: (1.0, True),
    "tis": lambda x, t, a: (min(token(x, t), 2.0), True),
    "seq-tis": lambda x, t, a: (min(math.exp(sum(x)), 2.0), True),
    "icepop": lambda x, t, a: (token(x, t), 0.5 <= token(x, t) <= 5.0),
    "mis": lambda x, t, a: (token(x, t), 0.5 <= token(x, t) <= 2.0),
    "seq-mis": lambda x, t, a: (math.exp(sum(x)), 0.5 <= math.exp(sum(x)) <= 2.0),
    "geo-rs": lambda x, t, a: (1.0, 0.999 <= math.exp(mean(x)) <= 1.001),
    "geo-rs-tis": lambda x, t, a: (min(token(x, t), 2.0), 0.999 <= math.exp(mean(x)) <= 1.001),
    "k3-rs": lambda x, t, a: (1.0, mean([k3(v) for v in x]) <= 0.01),
    "k3-rs-tis": lambda x, t, a: (min(token(x, t), 2.0), mean([k3(v) for v in x]) <= 0.01),
    "m2po-clip": lambda x, t, a: (1.0, True),
    "two-sided": lambda x, t, a: (1.0, 0.8 <= token(x, t) <= 1.28),
    "opsm": lambda x, t, a: (1.0, not (a[t] < 0 and -mean(x) > 0.05)),
    "decoupled-ppo": lambda x, t, a: (token(x, t), token(x, t) <= 5.0),
}


def loop_m2po(rows: list[Row], threshold: float = 0.04) -> list[bool]:
    """Drop the largest squares, one at a time, until the mean of the others is small enough."""
    flat = [(x, a) for xs, _, advs in rows for x, a in zip(xs, advs, strict=True)]
    alive = [i for i, (x, a) in enumerate(flat) if x * a > 0]
    dropped = set()
    while alive and mean([flat[i][0] ** 2 for i in alive]) > threshold:
        worst = max(alive, key=lambda i: flat[i][0] ** 2)
        alive.remove(worst)
        dropped.add(worst)
    return [i not in dropped for i in range(len(flat))]


def loop_dppo(rows: list[Row]) -> list[bool]:
    out = []
    for xs, log_p, advs in rows:
        for x, p, a in zip(xs, log_p, advs, strict=True):
            change = math.exp(p) - math.exp(p - x)
            out.append(not (change > 0.2 if a > 0 else change < -0.2))
    return out


@pytest.fixture(params=[0.0005, 0.3, 1.5])
def batch(request: pytest.FixtureRequest) -> FakeTokens:
    return pack(make_samples(LENGTHS, seed=4, spread=request.param), torch.float64)


def applied(name_or: str | Correction, batch: FakeTokens) -> typing.Any:
    correction = PRESETS[name_or].correction if isinstance(name_or, str) else name_or
    return compute_correction(
        correction, batch.old, batch.rollout_log_probs, batch.advantages, batch.token_counts
    )


@pytest.mark.parametrize("name", LOOPS)
def test_presets(batch: FakeTokens, name: str) -> None:
    got, at = applied(name, batch), 0
    for x, _, advs in rows_of(batch):
        for t in range(len(x)):
            weight, kept = LOOPS[name](x, t, advs)
            assert bool(got.mask[at]) == kept
            assert got.weights[at].item() == pytest.approx(weight * kept, rel=1e-9)
            at += 1


def test_m2po(batch: FakeTokens) -> None:
    got = applied("m2po", batch)
    assert got.mask.tolist() == loop_m2po(rows_of(batch))
    assert torch.equal(got.weights, got.mask.double())


def test_m2po_of_one_hopeless_token() -> None:
    one = torch.ones(1, dtype=torch.float64)
    got = compute_correction(PRESETS["m2po"].correction, one, 0 * one, one, torch.tensor([1]))
    assert got.mask.tolist() == [False]


@pytest.mark.parametrize("name", ["dppo", "dppo-kl"])
def test_dppo(batch: FakeTokens, name: str) -> None:
    assert applied(name, batch).mask.tolist() == loop_dppo(rows_of(batch))


def test_presets_do_something_when_far_off_policy() -> None:
    """The loops would agree with a correction that never acts as well."""
    far = pack(make_samples([30] * 10, seed=1, spread=1.5), torch.float64)
    for name in set(PRESETS) - {"none", "m2po-clip"}:
        got = applied(name, far)
        assert not got.mask.all() or (got.weights != 1).any(), name
        assert got.mask.any() or name in (
            "geo-rs",
            "geo-rs-tis",
            "k3-rs",
            "k3-rs-tis",
            "seq-mis",
        ), name


def test_the_table_is_the_flag() -> None:
    literal = typing.get_type_hints(AlgorithmConfig)["off_policy_correction"]
    assert list(typing.get_args(literal)) == list(PRESETS)
    assert all(p.source for p in PRESETS.values())


@pytest.mark.parametrize("name", PRESETS)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_on_policy_every_correction_is_the_identity(
    name: str, lengths: list[int], seed: int
) -> None:
    on = pack(make_samples(lengths, seed, spread=0.0))
    for normalize in {False, PRESETS[name].correction.weighted}:
        correction = dataclasses.replace(
            PRESETS[name].correction, batch_normalize=normalize, veto=1e-4
        )
        got = applied(correction, on)
        assert (got.weights == 1).all() and got.mask.all()


@given(seed=st.integers(0, 99), level=st.sampled_from(["token", "sequence", "geometric"]))
def test_without_a_bound_it_is_plain_importance_sampling(seed: int, level: typing.Any) -> None:
    batch = pack(make_samples([3, 5, 1], seed, spread=0.7), torch.float64)
    got, at = applied(Correction(weight=Weight(level=level)), batch), 0
    for x, _, _ in rows_of(batch):
        for t in range(len(x)):
            want = {"token": x[t], "sequence": sum(x), "geometric": mean(x)}[level]
            assert got.weights[at].item() == pytest.approx(math.exp(want), rel=1e-6)
            at += 1


def test_veto_drops_the_whole_sample() -> None:
    old, rollout = torch.zeros(5), torch.tensor([0.0, 12.0, 0.0, 0.1, 0.0])
    got = compute_correction(
        Correction(veto=1e-4), old, rollout, torch.ones(5), torch.tensor([3, 2])
    )
    assert got.mask.tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_batch_normalised_weights_have_mean_one(batch: FakeTokens, level: typing.Any) -> None:
    correction = Correction(weight=Weight(level=level, high=2.0), batch_normalize=True)
    got, plain = (
        applied(correction, batch),
        applied(dataclasses.replace(correction, batch_normalize=False), batch),
    )
    ends = batch.token_counts.cumsum(0) - 1
    each = got.weights if level == "token" else got.weights[ends]
    assert each.mean().item() == pytest.approx(1.0)
    assert torch.allclose(got.weights / got.weights[0], plain.weights / plain.weights[0])


@given(
    cut=st.integers(0, 6),
    seed=st.integers(0, 99),
    name=st.sampled_from(["m2po", "normalised", "seq-normalised"]),
)
def test_statistics_do_not_depend_on_the_cut_into_micro_batches(
    cut: int, seed: int, name: str
) -> None:
    correction = (
        PRESETS["m2po"].correction
        if name == "m2po"
        else PRESETS["seq-mis" if "seq" in name else "mis"].correction
    )
    correction = dataclasses.replace(correction, batch_normalize=name != "m2po")
    samples = make_samples(LENGTHS, seed, spread=0.5)

    def evidence(part: list[typing.Any]) -> typing.Any:
        b = pack(part, torch.float64)
        return batch_evidence(correction, b.old, b.rollout_log_probs, b.advantages, b.token_counts)

    whole = batch_statistics(correction, [evidence(samples)])
    parts = batch_statistics(correction, [evidence(p) for p in (samples[cut:], samples[:cut]) if p])
    assert parts == pytest.approx(whole, rel=1e-12)


def test_flags_become_the_correction() -> None:
    assert correction_of(AlgorithmConfig()) == Correction()
    assert not correction_of(AlgorithmConfig()).active
    flags: dict[str, typing.Any] = {
        "use_tis": True,
        "tis_clip": 3.0,
        "tis_clip_low": 0.1,
        "tis_level": "sequence",
    }
    whole = Weight(level="sequence")
    bounded = dataclasses.replace(whole, low=0.1, high=3.0)
    assert correction_of(AlgorithmConfig(**flags)) == Correction(weight=bounded)
    assert correction_of(AlgorithmConfig(**flags, tis_mode="truncate")) == Correction(
        weight=dataclasses.replace(bounded, low=0.0)
    )
    dropping = Rejection(over="sum", low=0.1, high=3.0)
    assert correction_of(AlgorithmConfig(**flags, tis_mode="mask")) == Correction(
        weight=whole, rejections=(dropping,)
    )
    assert correction_of(AlgorithmConfig(use_rollout_logprobs=True)).ratio == "bypass"
    clipped = correction_of(
        AlgorithmConfig(off_policy_correction="tis", correction_low=0.5, correction_high=4.0)
    )
    assert clipped == Correction(weight=Weight(low=0.5, high=4.0))
    extra = correction_of(
        AlgorithmConfig(
            off_policy_correction="icepop",
            correction_veto_threshold=1e-4,
            correction_batch_normalize=True,
        )
    )
    assert extra == dataclasses.replace(
        PRESETS["icepop"].correction, veto=1e-4, batch_normalize=True
    )


def test_a_weight_and_what_drops_are_said_apart() -> None:
    """verl's combinations: its preset, --use-tis with what only drops, and --correction-reject are
    three ways to say one thing."""
    ways: list[dict[str, typing.Any]] = [
        {"off_policy_correction": "geo-rs-tis"},
        {"off_policy_correction": "geo-rs", "use_tis": True},
        {
            "off_policy_correction": "tis",
            "correction_reject": ("seq_mean_k1:0.999:1.001",),
            "correction_mean_over": "kept",
        },
    ]
    (one,) = {correction_of(AlgorithmConfig(**flags)) for flags in ways}
    assert one == PRESETS["geo-rs-tis"].correction
    wider = AlgorithmConfig(off_policy_correction="geo-rs-tis", correction_low=0.9)
    assert correction_of(wider).weight == Weight(high=2.0)
    assert correction_of(wider).rejections == (Rejection(over="mean", low=0.9, high=1.001),)


def test_icepop_in_the_bypass_is_the_two_sided_mask() -> None:
    got = correction_of(
        AlgorithmConfig(
            off_policy_correction="icepop",
            use_rollout_logprobs=True,
            correction_low=0.8,
            correction_high=1.28,
        )
    )
    assert got == PRESETS["two-sided"].correction


MEASURE: dict[str, Callable[[float], float]] = {
    "k1": lambda x: x,
    "k2": lambda x: x * x / 2,
    "k3": k3,
}
OVER: dict[str, Callable[[list[float]], float]] = {"seq_sum": sum, "seq_mean": mean, "seq_max": max}


@pytest.mark.parametrize("measure", MEASURE)
@pytest.mark.parametrize("over", ["token", *OVER])
def test_rejections_against_verls_definitions(batch: FakeTokens, over: str, measure: str) -> None:
    """rollout_corr_helper.compute_rollout_rejection_mask; a k1 with reciprocal bounds, for verl's
    is of rollout/old."""
    if (over, measure) == ("seq_max", "k1"):
        with pytest.raises(ConfigError, match="seq_max_k1"):
            parse_rejection("seq_max_k1:0.5:2")
        return
    low, high = (0.6, 1 / 0.6) if measure == "k1" else (0.0, 0.05)
    words = f"{low}:{high}" if measure == "k1" else f"{high}"
    correction = Correction(
        weight=Weight(high=2.0),
        rejections=(parse_rejection(f"{over}_{measure}:{words}"), Rejection(high=3.0)),
    )
    got, at = applied(correction, batch), 0
    for x, _, _ in rows_of(batch):
        values = [MEASURE[measure](v) for v in x]
        for t in range(len(x)):
            value = values[t] if over == "token" else OVER[over](values)
            inside = math.log(low) <= -value <= math.log(high) if low else value <= high
            kept = inside and math.exp(x[t]) <= 3.0
            assert bool(got.mask[at]) == kept
            assert got.weights[at].item() == pytest.approx(kept * min(math.exp(x[t]), 2.0))
            at += 1


@pytest.mark.parametrize(
    "text",
    [
        "k3:1",
        "token_k4:1",
        "token_k1:2",
        "token_k3:0.1:2",
        "token_k2:",
        "token_k2",
        "token_k3:x",
        "token_k3:nan",
        "token_k1:1.1:2",
        "seq_mean_k3:0",
    ],
)
def test_a_rejection_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--correction-reject"):
        parse_rejection(text)


def loop_capped(moments: list[float], budget: float) -> float:
    """The authors' search for the cap, a breakpoint at a time."""
    v = sorted(moments)
    if not v or sum(v) <= budget * len(v):
        return math.inf
    best = 0.0
    for m in v:
        if sum(min(u, m) for u in v) < budget * len(v):
            best = m
    return best


@given(st.lists(st.floats(0.0, 2.0), max_size=30), st.floats(0.01, 0.5))
def test_the_cap_of_m2pos_authors(moments: list[float], budget: float) -> None:
    got = capped_cut(torch.tensor(moments, dtype=torch.float64).sort().values, budget)
    want = loop_capped(moments, budget)
    if got != pytest.approx(want):  # a tie of the budget with a breakpoint is rounding's
        near = [sum(min(u, m) for u in moments) / len(moments) for m in moments]
        assert min(abs(n - budget) for n in near) < 1e-9
