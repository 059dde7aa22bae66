"""Every architecture: Hugging Face -> Megatron -> Hugging Face to the bit, logits as transformers has them, a step of training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.schema import AlgorithmConfig
from tests.conftest import ROOT
from tests.integration import learner_cases as cases
from tests.integration.family_cases import FAMILIES, VARIANTS, make_family
from tests.integration.test_learner_step import logits_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def folders(root: Path) -> dict[str, Path]:
    return {name: make_family(name, root / name) for name in [*FAMILIES, *VARIANTS]}


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_round_trip_logits_and_a_step(folders: dict[str, Path], name: str) -> None:
    from stages.learn.megatron import start_rank

    samples = cases.make_samples(cases.LENGTHS)
    rank, model = start_rank(cases.settings(folders[name], use_tis=True)), cases.load_hf(folders[name])
    try:
        before, want = cases.weights_of(rank), checkpoint(folders[name])
        assert before.keys() == want.keys()
        assert all(torch.equal(before[n], want[n]) for n in want)
        for sample, got in zip(samples, logits_of(rank, samples), strict=True):
            with torch.no_grad():
                expected = model(torch.from_numpy(sample.tokens[:-1])[None]).logits[0, -sample.response_length :]
            assert (got - expected).abs().max() < 1e-4
        metrics = rank.step(cases.make_batch(cases.make_step(samples, micro_batches=2)))
        after = cases.weights_of(rank)
    finally:
        rank.close()
    old = [cases.token_log_probs(model, s, 1.0).detach() for s in samples]
    loss = cases.reference_loss(model, samples, old, AlgorithmConfig(use_tis=True))
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(sum(g.square().sum() for g in grads).sqrt().item(), rel=1e-4)
    frozen = {n for n in before if torch.equal(before[n], after[n]) and ".mlp.experts." not in n}  # an expert may go unchosen
    assert all(n.endswith("e_score_correction_bias") for n in frozen), frozen  # --moe-router-bias-update-rate is 0


@pytest.fixture(scope="module")
def found_by_two_ranks(root: Path, folders: dict[str, Path]) -> dict[str, list[str]]:
    """Layout and family -> tensors that did not come back as they went in, from two processes that split them."""
    from stages.learn.megatron import load

    load()
    from stages.learn.rendezvous import serve_store

    store, port = serve_store(2)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.integration.family_ranks"]
    ranks = [
        subprocess.Popen([*command, str(r), str(port), str(root)], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) for r in range(2)
    ]
    try:
        errors = [r.communicate(timeout=300)[1] for r in ranks]
    finally:
        for r in ranks:
            r.kill()
        del store
    assert [r.returncode for r in ranks] == [0, 0], "\n".join(errors)[-4000:]
    one, other = (json.loads((root / f"found.{r}.json").read_text()) for r in range(2))
    assert one.keys() == other.keys()
    return {case: [*one[case], *other[case]] for case in one}


def test_split_weights_come_back_whole(found_by_two_ranks: dict[str, list[str]]) -> None:
    """Split over tensor, pipeline, expert and expert-tensor ranks."""
    assert len(found_by_two_ranks) == 4 * 2 + 6 * 5
    assert {case: wrong[:3] for case, wrong in found_by_two_ranks.items() if wrong} == {}
