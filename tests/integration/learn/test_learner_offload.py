"""Giving the device up between steps: nothing is left on it, and nothing changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.learn import learner_cases as cases
from tests.integration.learn.processes import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
FLAGS: dict[str, dict[str, Any]] = {
    "float32": {"use_tis": True, "use_kl_loss": True, "kl_loss_coef": 0.1},
    "bfloat16": {"dtype": "bfloat16", "use_tis": True},  # with master weights
    # parameters are views of one buffer
    "distributed-optimizer": {"megatron": {"use_distributed_optimizer": True}},
    "critic": {"advantage_estimator": "ppo"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.make_model("qwen3", tmp_path_factory.mktemp("model") / "m", tied=True)


@pytest.fixture
def make_rank(folder: Path) -> Iterator[Callable[..., Any]]:
    from stages.learn.megatron import start_rank

    ranks: list[Any] = []

    def make(**flags: Any) -> Any:
        for old in ranks:
            old.close()
        ranks[:] = [start_rank(cases.settings(folder, **flags))]
        return ranks[0]

    yield make
    for rank in ranks:
        rank.close()


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k not in cases.MEASURED}


def storages(rank: Any) -> list[torch.UntypedStorage]:
    """Of weights, gradients, master weights and moments, found independently of what is under
    test."""
    tensors = [
        *rank._built.ddp[0].parameters(),
        *(p.main_grad for p in rank._built.ddp[0].parameters()),
    ]
    for optimizer in rank._built.torch_optimizers:
        tensors += [p for g in optimizer.param_groups for p in g["params"]]
        tensors += [t for s in optimizer.state.values() for t in (s["exp_avg"], s["exp_avg_sq"])]
    return [t.untyped_storage() for t in tensors]


@pytest.mark.parametrize("name", FLAGS)
def test_steps_between_which_the_device_is_given_up(
    make_rank: Callable[..., Any], name: str, tmp_path: Path
) -> None:
    batch = cases.make_batch(*(cases.make_step(part) for part in cases.halves()))
    plain = make_rank(**FLAGS[name])
    want = [numbers(cases.step(plain, batch)) for _ in range(3)]
    weights = cases.weights_of(plain)
    rank, got = make_rank(**FLAGS[name]), []
    for i in range(3):
        got.append(numbers(cases.step(rank, batch)))
        held = storages(rank)
        sizes, distinct = [s.nbytes() for s in held], {s.data_ptr(): s.nbytes() for s in held}
        assert min(sizes) > 0
        rank.offload()
        assert [s.nbytes() for s in held] == [0] * len(held)
        # the critic's too, where there is one
        away = (*rank._offload._weights, *rank._offload._rest)
        assert sum(a.num_bytes for a in away) >= sum(distinct.values())
        if i == 1:  # a push, and a snapshot, from the host
            pushed = list(rank.hf_weights())  # all at once, after the last has been taken
            assert all(s.nbytes() == 0 for s in held)
            sent = [(name, tensor.clone()) for name, tensor in rank.sent_weights()]
            rank.publish_hf(tmp_path / "published")
            assert all(s.nbytes() == 0 for s in held)
            rank.export_hf(tmp_path / "hf")
            rank.save(tmp_path / "saved")
            assert all(s.nbytes() == 0 for s in held)
            rank.onload()
            assert [s.nbytes() for s in held] == sizes
            assert all(
                torch.equal(tensor, own)
                for (_, tensor), (_, own) in zip(pushed, rank.hf_weights(), strict=True)
            )
            assert all(torch.equal(dict(pushed)[name], tensor) for name, tensor in sent)
            assert len(sent) == len(pushed)
            published, exported = (
                cases.stored(tmp_path / "published"),
                cases.stored(tmp_path / "hf"),
            )
            assert published.keys() == exported.keys()
            assert all(torch.equal(published[key], exported[key]) for key in exported)
    assert got == want
    rank.onload()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in rank.hf_weights())
    rank.offload()
    rank.load(tmp_path / "saved")  # into a learner that is out
    assert numbers(cases.step(rank, batch)) == want[2]


def test_an_optimizer_that_is_on_the_cpu_already(make_rank: Callable[..., Any]) -> None:
    """--optimizer-cpu-offload and its like are for GPUs: accepted, and nothing changes."""
    from stages.learn.megatron.arguments import owned_by

    batch = cases.make_batch(cases.make_step(cases.make_samples(cases.LENGTHS)))
    want = make_rank()
    losses = [cases.step(want, batch)["loss"] for _ in range(2)]
    hybrid = {
        "optimizer_cpu_offload": "true",
        "optimizer_offload_fraction": "1.0",
        "overlap_cpu_optimizer_d2h_h2d": "true",
    }
    # what a GPU run is given
    assert owned_by("OptimizerConfig", hybrid) == {
        k: 1.0 if "fraction" in k else True for k in hybrid
    }
    assert [cases.step(make_rank(megatron=hybrid), batch)["loss"]] == losses[:1]


def test_two_ranks_whose_collectives_overlap(folder: Path, tmp_path: Path) -> None:
    """A gather of parameters that is still under way when the device is given up is finished
    first."""
    run_ranks(2, "offload_ranks", folder, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["stays"] == found["leaves"]
