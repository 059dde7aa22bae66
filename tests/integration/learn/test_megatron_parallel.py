"""Two ranks against one: data, tensor, sequence and pipeline parallelism give the same training."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.learn import learner_cases as cases
from tests.integration.learn.processes import run_ranks
from tests.integration.learn.two_ranks import ALGORITHMS, LAYOUTS, OPTIONS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.make_model("qwen3", tmp_path_factory.mktemp("model") / "qwen3", tied=True)


@pytest.fixture(scope="module", params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def single(model: Path, algorithm: str) -> Iterator[Any]:
    """One rank after the same two rollouts, with what it measured."""
    from stages.learn.megatron import start_rank

    rank = start_rank(cases.settings(model, **ALGORITHMS[algorithm]))
    steps = [cases.make_step(part, micro_batches=2) for part in cases.halves()]
    metrics = [cases.step(rank, cases.make_batch(*steps)) for _ in range(2)]
    weights = cases.weights_of(rank)
    cases.step(rank, cases.make_batch(*steps))
    few = cases.step(rank, cases.few())
    rank.close()
    yield metrics, weights, few


@pytest.fixture(scope="module")
def pair(model: Path, algorithm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the results of both ranks, for every layout."""
    return run_pair(model, tmp_path_factory.mktemp("pair"), algorithm)


@pytest.fixture(scope="module")
def pair_of_options(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for every layout and option."""
    return run_pair(model, tmp_path_factory.mktemp("options"), "options")


def run_pair(model: Path, out: Path, what: str) -> Path:
    run_ranks(2, "two_ranks", model, out, what)
    return out


def results(pair: Path, layout: str, rank: int) -> Any:
    return json.loads((pair / f"{layout}.{rank}.json").read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_train_as_one(single: Any, pair: Path, layout: str) -> None:
    from safetensors.torch import load_file

    metrics, weights, _ = single
    for rank in range(2):
        for got, want in zip(results(pair, layout, rank)["metrics"], metrics, strict=True):
            assert got.keys() == want.keys()
            for name in got.keys() - cases.MEASURED:
                assert got[name] == pytest.approx(want[name], rel=1e-4, abs=1e-5), (
                    layout,
                    rank,
                    name,
                )
    exported = load_file(pair / layout / "hf" / "model.safetensors")
    assert exported.keys() == weights.keys()
    for name, tensor in exported.items():
        # a step moves by 1e-3: see the next line
        assert (tensor - weights[name]).abs().max() < 1e-3, name
    moved = torch.cat([(exported[n] - weights[n]).flatten() for n in weights])
    assert moved.square().mean().sqrt() < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_without_a_sample_takes_part(single: Any, pair: Path, layout: str) -> None:
    *_, few = single
    for rank in range(2):
        got = results(pair, layout, rank)["few"]
        assert got.keys() == few.keys()
        for name in got.keys() - cases.MEASURED - {"num_tokens"}:  # what it passed along counts
            assert got[name] == pytest.approx(few[name], rel=2e-3, abs=1e-5), (layout, rank, name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resume_is_exact(pair: Path, layout: str) -> None:
    for rank in range(2):
        result = results(pair, layout, rank)
        after, resumed = (
            {k: v for k, v in result[x].items() if k not in cases.MEASURED}
            for x in ("after", "resumed")
        )
        assert after == resumed
        assert after["loss"] != result["metrics"][-1]["loss"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_refuses(pair: Path, layout: str) -> None:
    assert all("refused" in results(pair, layout, rank)["refused"] for rank in range(2))


@pytest.fixture(scope="module")
def single_options(model: Path) -> dict[str, list[dict[str, float]]]:
    """One rank's metrics of two rollouts, for every option."""
    from stages.learn.megatron import start_rank

    out = {}
    for option, algorithm in OPTIONS.items():
        rank = start_rank(cases.settings(model, **algorithm))
        out[option] = [
            cases.step(
                rank,
                cases.make_batch(
                    *(cases.make_step(part, micro_batches=2) for part in cases.halves())
                ),
            )
            for _ in range(2)
        ]
        rank.close()
    return out


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_options_are_the_same_on_two_ranks(
    single_options: Any, pair_of_options: Path, layout: str, option: str
) -> None:
    """Loss, reference KL, batch-wide statistics, user functions; and resuming is exact, the
    reference included."""
    for rank in range(2):
        result = results(pair_of_options, f"{layout}.{option}", rank)
        for got, want in zip(result["metrics"], single_options[option], strict=True):
            assert got.keys() == want.keys()
            for name in got.keys() - cases.MEASURED:
                # a quantile may be of the next bin
                rel = 0.021 if "rollout_ratio" in name else 1e-3
                assert got[name] == pytest.approx(want[name], rel=rel, abs=2e-5), (
                    layout,
                    rank,
                    name,
                )
        after, resumed = (
            {k: v for k, v in result[x].items() if k not in cases.MEASURED}
            for x in ("after", "resumed")
        )
        assert after == resumed
    if "kl_ref" in single_options[option][1]:
        assert single_options[option][0]["kl_ref"] != single_options[option][1]["kl_ref"]


def test_every_rank_names_the_same_token(model: Path, pair_of_options: Path) -> None:
    own = cases.load_hf(model)
    worst = {}
    with torch.no_grad():
        for s in cases.halves()[0]:
            gap = (
                (cases.token_log_probs(own, s, 1.0) - torch.from_numpy(s.rollout_log_probs))
                .expm1()
                .abs()
            )
            trained = gap[torch.from_numpy(s.loss_mask.astype(bool))]
            worst[s.index] = (float(trained.max()), int(trained.argmax()))
    sample = max(worst, key=lambda i: worst[i])
    for layout in LAYOUTS:
        said = [results(pair_of_options, f"{layout}.on-policy", rank) for rank in range(2)]
        assert said[0] == said[1]
        assert re.search(
            rf"trained token {worst[sample][1]} of sample {sample} .*refused", said[0]
        ), (layout, said[0])


def test_checkpoint_of_two_ranks_loads_on_one(model: Path, algorithm: str, pair: Path) -> None:
    from stages.learn.megatron import start_rank

    rank = start_rank(
        cases.settings(model, **ALGORITHMS[algorithm], megatron={"use_distributed_optimizer": True})
    )
    try:
        rank.load(pair / "dp2-distributed-optimizer")
        steps = [cases.make_step(part, micro_batches=2) for part in cases.halves()]
        got, want = (
            cases.step(rank, cases.make_batch(*steps)),
            results(pair, "dp2-distributed-optimizer", 0)["after"],
        )
        assert got["loss"] == pytest.approx(want["loss"], abs=1e-5)
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-4)
    finally:
        rank.close()
