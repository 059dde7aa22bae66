"""Every parallel layout trains as one process does: loss, gradient norm, log-probs and weights
after three rollouts."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.learn import layouts
from tests.integration.learn import learner_cases as cases
from tests.integration.learn.processes import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TOLERANCE = 1e-5  # fp32, of losses, norms, log-probs; a weight moves by about 6e-3 in the six steps


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    layouts.make_models(folder)
    return folder


@pytest.fixture(scope="module")
def found(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what every rank found, of all cases."""
    out = tmp_path_factory.mktemp("layouts")
    run_ranks(layouts.WORLD, "layouts", models, out)
    return out


@pytest.fixture(scope="module")
def single(models: Path) -> Any:
    """(objective, model) -> what one process finds, and its weights."""
    from stages.learn.megatron import start_rank

    @functools.cache
    def run(objective: str, model: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        rank = start_rank(
            cases.settings(
                models / model, megatron=layouts.OPTIMIZER, **layouts.OBJECTIVES[objective]
            )
        )
        try:
            return layouts.train(rank), cases.weights_of(rank)
        finally:
            rank.close()

    return run


def results(found: Path, name: str) -> list[Any]:
    ranks = [
        json.loads((found / f"{name}.{rank}.json").read_text())
        for rank in range(layouts.CASES[name].ranks)
    ]
    errors = [rank["error"] for rank in ranks if "error" in rank]
    assert not errors, "\n".join(errors)[-4000:]
    return ranks


@pytest.mark.parametrize("name", layouts.CASES)
def test_layout_trains_as_one_process(single: Any, found: Path, models: Path, name: str) -> None:
    from safetensors.torch import load_file

    case = layouts.CASES[name]
    want, weights = single(case.objective, case.model)
    ranks = results(found, name)
    for result in ranks:
        for got, expected in zip(result["metrics"], want["metrics"], strict=True):
            assert got.keys() == expected.keys()
            for metric in got.keys() - cases.MEASURED:
                # a quantile may be of the next bin
                tolerance = 0.021 if "rollout_ratio" in metric else TOLERANCE
                assert got[metric] == pytest.approx(
                    expected[metric], rel=tolerance, abs=TOLERANCE
                ), metric
    exported, before = (
        load_file(found / name / "model.safetensors"),
        load_file(models / case.model / "model.safetensors"),
    )
    assert exported.keys() == weights.keys()
    for key, tensor in exported.items():
        assert (tensor - weights[key]).abs().max() < TOLERANCE, key
        assert (tensor - before[key]).abs().max() > 100 * TOLERANCE, key
    assert len({result["checksum"] for result in ranks}) == 1


@pytest.mark.parametrize("name", layouts.CASES)
def test_log_probs_are_whole_on_every_last_stage(single: Any, found: Path, name: str) -> None:
    """Over split vocabularies and split sequences: of every trained token of the micro-batches of
    the rank's data-parallel share."""
    case = layouts.CASES[name]
    want = single(case.objective, case.model)[0]["log_probs"]
    ranks = [r["log_probs"] for r in results(found, name)]
    assert {int(i) for r in ranks for i in r} == want.keys()
    together = sum(len(r) for r in ranks)
    assert together == len(want) * case.ranks // int(
        str(case.flags.get("pipeline_model_parallel_size", 1))
    ) // dp_size(case)
    for r in ranks:
        for i, values in r.items():
            assert torch.allclose(
                torch.tensor(values), torch.tensor(want[int(i)]), atol=TOLERANCE, rtol=0
            )


def dp_size(case: layouts.Case) -> int:
    together = 1
    for name in (
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "context_parallel_size",
    ):
        together *= int(str(case.flags.get(name, 1)))
    return case.ranks // together


def test_a_trained_model_is_what_transformers_computes(found: Path) -> None:
    """The weights that a split model published, in transformers: the log-probs that it computed
    itself."""
    model = cases.load_hf(found / "tp2-sp-cp2")
    (log_probs, *_) = (r["log_probs"] for r in results(found, "tp2-sp-cp2"))
    with torch.no_grad():
        for sample in cases.make_samples(cases.LENGTHS, 7):
            want = cases.token_log_probs(model, sample, 1.0)[
                torch.from_numpy(sample.loss_mask.astype(bool))
            ]
            assert torch.allclose(
                torch.tensor(log_probs[str(sample.index)]), want, atol=3 * TOLERANCE, rtol=0
            )
