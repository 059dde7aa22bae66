"""Checkpoints: resuming is exact, the exported folder is transformers', bad folders are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import OptimConfig
from pipeline.core.errors import CheckpointError
from tests.integration.learn import learner_cases as cases

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


# of which every step has a learning rate of its own
SCHEDULE = OptimConfig(lr_decay_style="cosine", lr_warmup_iters=3)


@pytest.fixture(
    scope="module", params=[("qwen3", True), ("llama", False)], ids=["qwen3-tied", "llama"]
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, tied = request.param
    return cases.make_model(kind, tmp_path_factory.mktemp("model") / kind, tied=tied)


@pytest.fixture
def rank(folder: Path) -> Iterator[Any]:
    from stages.learn.megatron import start_rank

    rank = start_rank(cases.settings(folder, use_tis=True, optim=SCHEDULE))
    yield rank
    rank.close()


def batch(rollout_id: int) -> Any:
    samples = cases.make_samples(cases.LENGTHS, seed=rollout_id)
    return cases.make_batch(
        cases.make_step(samples[:4]), cases.make_step(samples[4:]), rollout_id=rollout_id
    )


def without_time(metrics: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k not in cases.MEASURED}


def test_fresh_export_is_bit_exact(folder: Path, rank: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    rank.export_hf(tmp_path / "hf")
    got, want = (
        load_file(tmp_path / "hf" / "model.safetensors"),
        load_file(folder / "model.safetensors"),
    )
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_resumed_run_takes_the_same_step(folder: Path, rank: Any, tmp_path: Path) -> None:
    from stages.learn.megatron import start_rank

    cases.step(rank, batch(0))
    rank.save(tmp_path / "1")
    want = [without_time(cases.step(rank, batch(i))) for i in (1, 2)]
    weights = cases.weights_of(rank)
    rank.close()
    # a fresh process would do the same
    resumed = start_rank(cases.settings(folder, use_tis=True, optim=SCHEDULE))
    try:
        resumed.load(tmp_path / "1")
        assert [without_time(cases.step(resumed, batch(i))) for i in (1, 2)] == want
        assert all(torch.equal(weights[name], tensor) for name, tensor in resumed.hf_weights())
    finally:
        resumed.close()


def test_saved_before_the_first_step(rank: Any, tmp_path: Path) -> None:
    rank.save(tmp_path / "0")
    want = [without_time(cases.step(rank, batch(i))) for i in range(2)]
    rank.load(tmp_path / "0")
    assert [without_time(cases.step(rank, batch(i))) for i in range(2)] == want


def test_exported_folder_is_transformers_own(rank: Any, tmp_path: Path) -> None:
    cases.step(rank, batch(0))
    rank.save(tmp_path / "1")
    model = cases.load_hf(tmp_path / "1" / "hf")
    own = dict(rank.hf_weights())
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())
    assert json.loads((tmp_path / "1" / "hf" / "config.json").read_text())["dtype"] == "float32"
    assert (tmp_path / "1" / "hf" / "tokenizer_config.json").is_file()
    out = model.generate(
        torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False, pad_token_id=0
    )
    assert out.shape == (1, 7)


def test_large_models_are_written_in_shards(
    rank: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.learn import hf_folder

    monkeypatch.setattr(hf_folder, "MAX_SHARD_BYTES", 100_000)
    rank.export_hf(tmp_path / "hf")
    assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 1
    model = cases.load_hf(tmp_path / "hf")
    own = dict(rank.hf_weights())
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())


def test_resumed_from_a_save_beside_training(folder: Path, rank: Any, tmp_path: Path) -> None:
    """The next step is taken while the bytes may still be on their way; a save at once after it
    waits for nothing of the first."""
    cases.step(rank, batch(0))
    rank.begin_save(tmp_path / "1", tmp_path / "1" / "hf")
    want = without_time(cases.step(rank, batch(1)))
    rank.finish_save()
    rank.begin_save(tmp_path / "2", None)
    rank.finish_save()
    assert rank.save_written() and not (tmp_path / "2" / "hf").exists()
    rank.load(tmp_path / "1")
    assert all(
        torch.equal(p, dict(rank.hf_weights())[name])
        for name, p in cases.load_hf(tmp_path / "1" / "hf").named_parameters()
    )
    assert without_time(cases.step(rank, batch(1))) == want


def test_an_older_checkpoint_is_replaced(rank: Any, tmp_path: Path) -> None:
    rank.save(tmp_path / "1")
    cases.step(rank, batch(0))
    rank.save(tmp_path / "1")
    want = cases.weights_of(rank)
    cases.step(rank, batch(1))
    rank.load(tmp_path / "1")
    assert all(torch.equal(want[name], tensor) for name, tensor in rank.hf_weights())


def test_bad_checkpoints_are_named(rank: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere/torch_dist.*metadata\.json is missing"):
        rank.load(tmp_path / "nowhere")
    rank.save(tmp_path / "1")
    for file in (tmp_path / "1" / "torch_dist").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        rank.load(tmp_path / "1")


def test_missing_weights_are_named(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from stages.learn.megatron import start_rank

    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        start_rank(cases.settings(tmp_path))
