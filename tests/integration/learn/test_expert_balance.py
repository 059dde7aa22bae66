"""Balance of the experts: the bias that moves without a gradient, and the auxiliary losses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.errors import ConfigError, LearnerError
from tests.integration.learn import learner_cases as cases
from tests.integration.learn import routing_cases as routing
from tests.integration.learn.family_cases import make_family

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
RATE = 0.05
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family("glm4_moe", tmp_path_factory.mktemp("models") / "glm4_moe")


@contextmanager
def rank_of(folder: Path, **flags: Any) -> Iterator[Any]:
    from stages.learn.megatron import start_rank

    rank = start_rank(cases.settings(folder, **flags))
    try:
        yield rank
    finally:
        rank.close()


def biases(rank: Any) -> torch.Tensor:
    return dict(rank.hf_weights())[BIAS].clone()


def test_the_bias_rises_for_idle_experts_and_falls_for_busy_ones(
    biased: Path, tmp_path: Path
) -> None:
    """By the rate, with the sign of (mean - tokens of the expert); it is among the pushed and the
    saved weights."""
    # no two share a prompt: every token counts once
    samples = cases.make_samples([(6 + i, 12) for i in range(6)])
    taken = np.concatenate([routing.RoutedModel(biased).took(s)[:, 0] for s in samples])
    load = np.bincount(taken.ravel(), minlength=8)
    with rank_of(biased, megatron={"moe_router_bias_update_rate": RATE}, use_kl_loss=True) as rank:
        before = biases(rank)
        cases.step(rank, cases.make_batch(cases.make_step(samples, micro_batches=2)))
        after = biases(rank)
        assert (after - before).numpy() == pytest.approx(
            RATE * np.sign(load.mean() - load), abs=1e-6
        )
        with rank._reference.in_place():  # the reference has its own
            assert torch.equal(biases(rank), before)
        rank.save(tmp_path / "saved")
        assert torch.equal(cases.stored(tmp_path / "saved" / "hf")[BIAS], after)
        cases.step(rank, cases.make_batch(cases.make_step(samples)))
        assert not torch.equal(biases(rank), after)
        rank.load(tmp_path / "saved")
        assert torch.equal(biases(rank), after)
        samples[0].advantages[0] = float("nan")
        with pytest.raises(LearnerError, match="not finite"):
            cases.step(rank, cases.make_batch(cases.make_step(samples)))
        assert torch.equal(biases(rank), after), "a refused step leaves the bias as it was"


def test_the_bias_is_frozen_by_default(biased: Path) -> None:
    with rank_of(biased) as rank:
        before = biases(rank)
        cases.step(rank, cases.make_batch(cases.make_step(cases.make_samples(cases.LENGTHS))))
        assert torch.equal(biases(rank), before)


def test_an_auxiliary_loss_reaches_the_routers_and_the_metrics(tmp_path: Path) -> None:
    """Its value against the formula over transformers' routing, N * sum(f_i P_i), and its gradient
    in the routers only."""
    folder = routing.make_moe(tmp_path / "moe")
    samples = cases.make_samples([(7, 20)])
    losses = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.1}
    gradients = {}
    for name, flags in {"without": {}, "with": losses}.items():
        with rank_of(folder, megatron={"clip_grad": 0.0, **flags}) as rank:
            metrics = cases.step(rank, cases.make_batch(cases.make_step(samples)))
            gradients[name] = {n: g.clone() for n, g in cases.hf_gradients(rank).items()}
            assert ("moe_load_balancing_loss" in metrics) == (name == "with")
    gates, values = [f"model.layers.{i}.mlp.gate.weight" for i in range(routing.LAYERS)], []
    reference = routing.RoutedModel(folder)
    reference.took(samples[0])
    for scores, taken in zip(reference.scores, reference._took, strict=True):
        share = torch.bincount(taken[:-1].ravel(), minlength=routing.EXPERTS) / taken[:-1].numel()
        values.append(float(routing.EXPERTS * (share * scores[:-1].mean(0)).sum()))
    assert metrics["moe_load_balancing_loss"] == pytest.approx(np.mean(values), rel=1e-5)
    assert all((gradients["with"][n] - gradients["without"][n]).abs().max() > 1e-4 for n in gates)
    assert torch.equal(gradients["with"]["lm_head.weight"], gradients["without"]["lm_head.weight"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"moe_aux_loss_coeff": 0.1},
            "--moe-aux-loss-coeff 0.1 without --moe-router-load-balancing-type",
        ),
        (
            {"moe_router_bias_update_rate": 0.1},
            "--moe-router-bias-update-rate 0.1: the model's routers have no expert bias",
        ),
    ],
)
def test_what_would_change_nothing_is_refused(
    tmp_path: Path, flags: dict[str, Any], said: str
) -> None:
    with (
        pytest.raises(ConfigError, match=said),
        rank_of(routing.make_moe(tmp_path / "moe"), megatron=flags),
    ):
        pass
