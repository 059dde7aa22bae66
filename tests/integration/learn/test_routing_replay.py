"""Replayed experts in the learner, against transformers with the same experts forced on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema import AlgorithmConfig
from pipeline.core.errors import ConfigError, LearnerError
from pipeline.core.types import TrainSample
from tests.integration.learn import learner_cases as cases
from tests.integration.learn import routing_cases as routing
from tests.integration.learn.family_cases import make_family

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PLAIN = {"clip_grad": 0.0}
FULL = {
    **PLAIN,
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": "1",
}
SELECTIVE = {**PLAIN, "recompute_granularity": "selective", "recompute_modules": "moe"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return routing.make_moe(tmp_path_factory.mktemp("model") / "moe")


@pytest.fixture
def make_rank(folder: Path) -> Iterator[Callable[..., Any]]:
    from stages.learn.megatron import start_rank

    ranks: list[Any] = []

    def make(model: Path = folder, **kwargs: Any) -> Any:
        for old in ranks:
            old.close()
        ranks[:] = [start_rank(cases.settings(model, **kwargs))]
        return ranks[0]

    yield make
    for rank in ranks:
        rank.close()


def samples_with_experts() -> list[TrainSample]:
    return routing.with_random_experts(cases.make_samples(cases.LENGTHS))


def log_probs_of(rank: Any, samples: list[TrainSample], mode: Any = "replay") -> torch.Tensor:
    """[N] of one pack."""
    from stages.learn.log_prob_pass import Prepared

    packed = cases.pack(rank, samples)
    return rank._passes.log_probs_now([Prepared(p) for p in packed], routing=mode)[0]


@pytest.mark.parametrize(
    "megatron", [PLAIN, FULL, SELECTIVE], ids=["plain", "full-recompute", "selective-recompute"]
)
def test_the_engines_experts_are_taken_forwards_and_backwards(
    folder: Path, make_rank: Callable[..., Any], megatron: dict[str, Any]
) -> None:
    """Loss and every gradient, the routers' too, with random experts forced on both, in
    micro-batches that wait for one another."""
    samples = samples_with_experts()
    rank = make_rank(megatron=megatron, use_rollout_routing_replay=True)
    metrics = cases.step(rank, cases.make_batch(cases.make_step(samples, micro_batches=3)))
    reference = routing.RoutedModel(folder, samples)
    old = [cases.token_log_probs(reference, s, 1.0).detach() for s in samples]
    loss = cases.reference_loss(reference, samples, old, AlgorithmConfig())
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    got, want = cases.hf_gradients(rank), {n: p.grad for n, p in reference.model.named_parameters()}
    assert all(
        want[f"model.layers.{i}.mlp.gate.weight"].abs().max() > 1e-3 for i in range(routing.LAYERS)
    )
    by_expert = {name: grad for name, grad in got.items() if ".experts." in name}
    for name, grad in want.items():
        if ".experts." not in name:
            assert (got[name] - grad).abs().max() < 1e-5, name
    assert sum(g.square().sum() for g in by_expert.values()) == pytest.approx(
        sum(g.square().sum() for n, g in want.items() if ".experts." in n).item(), rel=1e-4
    )
    assert metrics["grad_norm"] == pytest.approx(
        sum(g.square().sum() for g in want.values()).sqrt().item(), rel=1e-5
    )
    assert 0.5 < metrics["routing_mismatch"] < 0.95  # random experts: 3 of 4 are not the router's


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "qwen3_moe-dense-first"])
def test_other_routers_and_dense_layers_first(
    make_rank: Callable[..., Any], tmp_path: Path, family: str
) -> None:
    """Sigmoid scores, a bias that only chooses, groups of experts: experts from outside overrule
    all of it."""
    model = make_family(family, tmp_path / family)
    drawn = routing.with_random_experts(cases.make_samples(cases.LENGTHS), num_layers=2)
    samples = [
        dataclasses.replace(
            s, routed_experts=s.routed_experts % (8 if family != "qwen3_moe-dense-first" else 4)
        )
        for s in drawn
    ]
    for s in samples:
        s.routed_experts[..., 1] += s.routed_experts[..., 0] == s.routed_experts[..., 1]
        s.routed_experts[:, 0] = 0
    if family == "qwen3_moe-dense-first":
        samples = [dataclasses.replace(s, routed_experts=s.routed_experts % 4) for s in samples]
    metrics = cases.step(
        make_rank(model, megatron=PLAIN, use_rollout_routing_replay=True),
        cases.make_batch(cases.make_step(samples)),
    )
    reference = routing.RoutedModel(model, samples)
    old = [cases.token_log_probs(reference, s, 1.0).detach() for s in samples]
    loss = cases.reference_loss(reference, samples, old, AlgorithmConfig())
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    grads = [p.grad for p in reference.model.parameters() if p.grad is not None]
    assert metrics["grad_norm"] == pytest.approx(
        sum(g.square().sum() for g in grads).sqrt().item(), rel=1e-4
    )
    assert metrics["routing_mismatch"] > 0.3


def test_without_the_flag_the_same_rows_route_freely(
    folder: Path, make_rank: Callable[..., Any]
) -> None:
    samples = samples_with_experts()
    metrics = cases.step(make_rank(megatron=PLAIN), cases.make_batch(cases.make_step(samples)))
    free = routing.RoutedModel(folder)
    old = [cases.token_log_probs(free, s, 1.0).detach() for s in samples]
    assert metrics["loss"] == pytest.approx(
        cases.reference_loss(free, samples, old, AlgorithmConfig()).item(), abs=1e-5
    )
    assert "routing_mismatch" not in metrics


def test_replay_is_the_captured_pass_to_the_bit(
    folder: Path, make_rank: Callable[..., Any]
) -> None:
    """What the routers took, once captured, once as an engine would say it, gives the same
    log-probs; other experts give others."""
    from stages.learn.log_prob_pass import Prepared

    plain = cases.make_samples(cases.LENGTHS)
    rank = make_rank(use_routing_replay=True)
    free = log_probs_of(rank, plain)
    (captured,) = rank._passes.with_old([Prepared(p) for p in cases.pack(rank, plain)])
    assert torch.equal(captured.old, free)
    assert torch.equal(rank._passes.log_probs_now([captured])[0], free)
    reference = routing.RoutedModel(folder)
    told = [
        dataclasses.replace(s, routed_experts=reference.took(s).astype(np.uint8)) for s in plain
    ]
    assert torch.equal(log_probs_of(rank, told), free)
    packed = cases.pack(rank, told)[0].routed_experts
    assert torch.equal(packed.sort(-1).values, captured.batch.routed_experts.sort(-1).values)
    assert (log_probs_of(rank, samples_with_experts()) - free).abs().mean() > 0.05
    assert torch.equal(log_probs_of(rank, samples_with_experts(), "free"), free)


def test_unknown_tokens_are_the_routers_own(folder: Path, make_rank: Callable[..., Any]) -> None:
    """Rows that are missing at the end, and rows of -1."""
    samples = [
        dataclasses.replace(s, routed_experts=s.routed_experts[:-2].astype(np.int16))
        for s in samples_with_experts()
        if s.num_tokens > 12
    ]
    for s in samples:
        s.routed_experts[4] = -1
    rank = make_rank(use_rollout_routing_replay=True)
    reference = routing.RoutedModel(folder, samples)
    for s in samples:
        with torch.no_grad():
            want = cases.token_log_probs(reference, s, 1.0)[
                torch.from_numpy(s.loss_mask.astype(bool))
            ]
        assert (log_probs_of(rank, [s]) - want).abs().max() < 1e-5


def test_prompts_are_shared_only_where_they_went_the_same_way(
    make_rank: Callable[..., Any], folder: Path
) -> None:
    samples = [s for s in samples_with_experts() if s.num_tokens - s.response_length == 8]
    rank = make_rank(use_rollout_routing_replay=True)
    shared = cases.pack(rank, samples)[0].num_inputs
    other = dataclasses.replace(
        samples[1],
        routed_experts=routing.with_random_experts(samples[1:2], seed=9)[0].routed_experts,
    )
    mixed = [samples[0], other, samples[2]]
    assert cases.pack(rank, mixed)[0].num_inputs == shared + 8
    reference = routing.RoutedModel(folder, [other])
    with torch.no_grad():
        want = cases.token_log_probs(reference, other, 1.0)
    one = [
        dataclasses.replace(s, loss_mask=np.ones_like(s.loss_mask) * (s is other)) for s in mixed
    ]
    assert (log_probs_of(rank, one) - want).abs().max() < 1e-5


def test_later_steps_take_the_experts_at_consumption(
    folder: Path, make_rank: Callable[..., Any]
) -> None:
    """R2: the second of two steps, on weights that the first has moved, with the experts of those
    before it."""
    halves = cases.halves()
    rank = make_rank(megatron={**PLAIN, "lr": 1e-2, "adam_eps": 1e-4}, use_routing_replay=True)
    metrics = cases.step(
        rank, cases.make_batch(*(cases.make_step(h, micro_batches=2) for h in halves))
    )
    reference = routing.RoutedModel(folder)
    at_consumption = [dataclasses.replace(s, routed_experts=reference.took(s)) for s in halves[1]]
    old = [[cases.token_log_probs(reference, s, 1.0).detach() for s in half] for half in halves]
    optimizer = torch.optim.AdamW(reference.model.parameters(), lr=1e-2, eps=1e-4, weight_decay=0.0)
    first = cases.reference_loss(reference, halves[0], old[0], AlgorithmConfig())
    first.backward()
    optimizer.step()
    free = cases.reference_loss(reference, halves[1], old[1], AlgorithmConfig()).item()
    reference.force(at_consumption)
    second = cases.reference_loss(reference, halves[1], old[1], AlgorithmConfig()).item()
    assert abs(free - second) > 2e-3, "the test must see the difference"
    assert metrics["loss"] == pytest.approx((first.item() + second) / 2, abs=1e-4)
    differs = []
    # no two of a micro-batch share their prompt: no token counts once for several
    for s in at_consumption:
        taken, own = reference.took(s), reference.own()
        differs.append((taken[..., None] != own[..., None, :]).all(-1).ravel())
    assert metrics["routing_mismatch"] == pytest.approx(np.concatenate(differs).mean(), abs=2e-3)
    assert metrics["routing_mismatch"] > 0.02


def test_the_reference_routes_freely(make_rank: Callable[..., Any]) -> None:
    """Its weights are the policy's here: with the policy's own experts there is no divergence, with
    others there is."""
    rank = make_rank(
        use_rollout_routing_replay=True, use_kl_loss=True, kl_loss_coef=0.0, kl_loss_type="k2"
    )
    plain = cases.make_samples(cases.LENGTHS)
    packed = cases.pack(rank, samples_with_experts())
    (prepared,) = rank._ahead.prepare([packed])[0]
    assert torch.equal(prepared.ref, log_probs_of(rank, plain))
    metrics = cases.step(rank, cases.make_batch(cases.make_step(samples_with_experts())))
    assert metrics["kl_ref"] > 0.01


def test_nothing_stays_forced(make_rank: Callable[..., Any]) -> None:
    """After a refused step, too."""
    rank = make_rank(megatron=FULL, use_rollout_routing_replay=True)
    plain = cases.make_samples(cases.LENGTHS)
    free = log_probs_of(rank, plain)
    poisoned = samples_with_experts()
    poisoned[0].advantages[0] = float("nan")
    with pytest.raises(LearnerError, match="not finite"):
        cases.step(rank, cases.make_batch(cases.make_step(poisoned, micro_batches=2)))
    assert torch.equal(log_probs_of(rank, plain), free)
    seats = [s for chunk in rank._routing._seats.values() for s in chunk]
    assert len(seats) == routing.LAYERS and all(
        s.mode == "free" and s.forced is None and not s.awaiting for s in seats
    )


def test_experts_that_the_model_has_not_are_refused(make_rank: Callable[..., Any]) -> None:
    rank = make_rank(use_rollout_routing_replay=True)
    sample = samples_with_experts()[0]
    experts = sample.routed_experts
    assert experts is not None
    for wrong, said in (
        (experts[:, :2], r"\[tokens, 4, 2\]"),
        (experts + 1, "0 to 7"),
        (experts * np.array([1, 0, 1, 1], np.uint8)[:, None], r"layers \[1\]"),
    ):
        with pytest.raises(LearnerError, match=said):
            log_probs_of(rank, [dataclasses.replace(sample, routed_experts=wrong)])
    with pytest.raises(LearnerError, match="all or none"):
        log_probs_of(rank, [sample, dataclasses.replace(sample, routed_experts=None)])
    with pytest.raises(LearnerError, match="no routed experts"):
        cases.step(rank, cases.make_batch(cases.make_step(cases.make_samples(cases.LENGTHS))))


@pytest.mark.parametrize("flag", ["use_rollout_routing_replay", "use_routing_replay"])
def test_a_dense_model_is_refused(make_rank: Callable[..., Any], tmp_path: Path, flag: str) -> None:
    model = cases.make_model("qwen3", tmp_path / "dense", tied=True)
    with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')}: the model has no experts"):
        make_rank(model, **{flag: True})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cuda_graph_impl", "local"),
        ("moe_router_load_balancing_type", "sinkhorn"),
        ("moe_router_fusion", True),
    ],
)
def test_routers_that_cannot_be_told_are_refused(name: str, value: Any) -> None:
    from stages.learn.megatron import load

    load()
    from stages.learn.megatron.routing import _check_config

    fine = {
        "num_moe_experts": 8,
        "moe_router_fusion": False,
        "cuda_graph_impl": "none",
        "moe_router_load_balancing_type": "none",
    }
    _check_config(SimpleNamespace(**fine), "--use-routing-replay")
    with pytest.raises(ConfigError, match=f"--use-routing-replay with --{name.replace('_', '-')}"):
        _check_config(SimpleNamespace(**{**fine, name: value}), "--use-routing-replay")


def test_the_critic_routes_freely(folder: Path, make_rank: Callable[..., Any]) -> None:
    """It has routers of its own, which the policy's experts do not reach."""
    rank = make_rank(
        use_rollout_routing_replay=True, advantage_estimator="ppo", megatron={"lr": 0.0}
    )
    samples, plain = samples_with_experts(), cases.make_samples(cases.LENGTHS)
    torch.nn.init.normal_(rank._critic.built.models[0].output_layer.weight)
    values = [rank._critic._values(cases.pack(rank, s))[0] for s in (samples, plain)]
    assert torch.equal(*values) and values[0].abs().max() > 0.1
    metrics = cases.step(rank, cases.make_batch(cases.make_step(samples, micro_batches=2)))
    assert metrics["routing_mismatch"] > 0.5 and metrics["value_loss"] > 0
