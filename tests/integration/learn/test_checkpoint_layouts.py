"""torch_dist checkpoints across layouts: what one rank saves four load, and back, optimizer and
all; saves beside training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.schema import RunConfig
from pipeline.cli.main import main
from pipeline.core.errors import CheckpointError
from tests.integration.learn import learner_cases as cases
from tests.integration.learn.checkpoint_ranks import LAYOUTS, settings, source, step
from tests.integration.learn.processes import run_ranks

KINDS: dict[str, dict[str, object]] = {
    "plain": {},
    "distributed": {"use_distributed_optimizer": True},
}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.make_model("qwen3", tmp_path_factory.mktemp("model") / "qwen3", tied=True)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def alone(model: Path, out: Path) -> dict[str, Any]:
    """One rank, with each kind of optimizer: a step, saved, then three more steps."""
    found = {}
    for kind, flags in KINDS.items():
        rank = one_rank(model, flags)
        step(rank, 0)
        rank.save(out / kind)
        found[kind] = {
            "loaded": step(rank, 1),
            "saved": step(rank, 2),
            "third": step(rank, 3),
            "weights": cases.weights_of(rank),
        }
        rank.close()
    return found


def one_rank(model: Path, flags: dict[str, object]) -> Any:
    from stages.learn.megatron import start_rank

    return start_rank(settings(cases, model, megatron=flags))


@pytest.fixture(scope="module")
def four(model: Path, out: Path, alone: dict[str, Any]) -> Path:
    """What four ranks made of it."""
    run_ranks(4, "checkpoint_ranks", model, out)
    return out


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def one(model: Path, layout: str) -> Iterator[Any]:
    """A rank that loads what the four saved."""
    rank = one_rank(model, KINDS[source(LAYOUTS[layout])])
    yield rank
    rank.close()


def close(got: dict[str, float], want: dict[str, float]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        if name not in cases.MEASURED | {"num_micro_batches"}:
            assert got[name] == pytest.approx(want[name], rel=2e-4, abs=2e-5), name


def same_folders(a: Path, b: Path) -> bool:
    x, y = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def test_one_ranks_checkpoint_in_four(four: Path, alone: dict[str, Any], layout: str) -> None:
    """Weights to the bit; Adam's moments, schedule and reference: the steps after it are those of
    the one rank."""
    assert same_folders(four / layout / "loaded", four / source(LAYOUTS[layout]) / "hf")
    for name in ("loaded", "saved"):
        close(
            json.loads((four / layout / f"{name}.json").read_text()),
            alone[source(LAYOUTS[layout])][name],
        )


def test_four_ranks_checkpoint_in_one(
    four: Path, one: Any, alone: dict[str, Any], layout: str
) -> None:
    one.load(four / layout / "saved")
    stored = load_file(four / layout / "saved" / "hf" / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in one.hf_weights())
    close(step(one, 2), json.loads((four / layout / "saved.json").read_text()))
    close(step(one, 3), alone[source(LAYOUTS[layout])]["third"])
    assert all(
        torch.allclose(alone[source(LAYOUTS[layout])]["weights"][name], tensor, atol=2e-5)
        for name, tensor in one.hf_weights()
    )


def test_four_ranks_checkpoint_converts(
    four: Path, model: Path, layout: str, tmp_path: Path
) -> None:
    words = [
        "--input",
        four / layout / "saved",
        "--hf-checkpoint",
        model,
        "--output",
        tmp_path / "hf",
    ]
    assert main(["convert", "torch-dist-to-hf", *map(str, words)]) == 0
    assert same_folders(tmp_path / "hf", four / layout / "saved" / "hf")


def test_a_save_beside_training_holds_the_instant_it_began(four: Path, layout: str) -> None:
    ranks = [json.loads((four / layout / f"beside.{r}.json").read_text()) for r in range(4)]
    assert not any(found["early"] for found in ranks[:1]), (
        "rank 0 had written before the gate opened"
    )
    for found in ranks:
        again, after = (
            {k: v for k, v in found[x].items() if k not in cases.MEASURED}
            for x in ("again", "after")
        )
        assert again == after
    assert same_folders(four / layout / "beside" / "hf", four / layout / "before" / "hf")
    assert not list((four / layout).rglob("*.part"))


def test_a_save_that_fails_on_one_rank_fails_on_all(four: Path, one: Any, layout: str) -> None:
    for r in range(4):
        said = json.loads((four / layout / f"beside.{r}.json").read_text())["said"]
        assert (
            "rank 1: OSError: [Errno 28] No space left on device" in said
            and "The one before is in force" in said
        )
    with pytest.raises(CheckpointError, match=r"metadata\.json is missing"):
        one.load(four / layout / "failed")
    one.load(four / layout / "recovered")
    with pytest.raises(
        CheckpointError,
        match=r"was saved with(out)? --use-distributed-optimizer, .* --no-load-optim",
    ):
        one.load(four / ("plain" if source(LAYOUTS[layout]) == "distributed" else "distributed"))


def test_weights_alone(four: Path, model: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    """--initial-megatron-checkpoint and --ref-load from another layout's checkpoint;
    --no-save-optim and --no-load-optim."""
    import dataclasses

    from stages.learn.megatron import start_rank

    base = settings(cases, model, ref_load=str(four / "plain" / "torch_dist"))
    changed = dataclasses.replace(
        base.config,
        model=dataclasses.replace(
            base.model, initial_megatron_checkpoint=str(four / "tp2-pp2" / "saved")
        ),
        run=RunConfig(save_optim=False),
    )
    rank = start_rank(dataclasses.replace(base, config=changed))
    try:
        stored = load_file(four / "tp2-pp2" / "saved" / "hf" / "model.safetensors")
        assert all(torch.equal(stored[name], tensor) for name, tensor in rank.hf_weights())
        with rank._reference.in_place():
            reference = cases.weights_of(rank)
        first = load_file(four / "plain" / "hf" / "model.safetensors")
        assert all(torch.equal(first[name], reference[name]) for name in first)
        rank.save(tmp_path / "1")
        with pytest.raises(
            CheckpointError, match=r"holds no optimizer \(--no-save-optim\): --no-load-optim"
        ):
            rank.load(tmp_path / "1")
        want = step(rank, 1)
    finally:
        rank.close()
    without = dataclasses.replace(base.config, run=RunConfig(load_optim=False))
    rank = start_rank(dataclasses.replace(base, config=without))
    try:
        rank.load(tmp_path / "1")
        got = step(rank, 1)
        assert {k: v for k, v in got.items() if k not in cases.MEASURED} == {
            k: v for k, v in want.items() if k not in cases.MEASURED
        }
    finally:
        rank.close()
