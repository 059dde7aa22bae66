"""Every parallel layout sends in a push, bit for bit, what one process sends: each rank its own
part, and nothing of a part that it does not hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.learn.hf_folder import HfFolder
from tests.integration.learn import layouts, sent_ranks
from tests.integration.learn import learner_cases as cases
from tests.integration.learn.processes import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    layouts.make_models(folder)
    return folder


@pytest.fixture(scope="module")
def found(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what every rank sends, of all layouts."""
    out = tmp_path_factory.mktemp("sent")
    run_ranks(layouts.WORLD, "sent_ranks", models, out)
    return out


@pytest.fixture(scope="module")
def single(models: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Model -> what one process sends."""
    from stages.learn.megatron import start_rank

    out = {}
    for model in ("dense", "experts"):
        rank = start_rank(cases.settings(models / model))
        try:
            out[model] = {name: tensor.clone() for name, tensor in rank.sent_weights()}
        finally:
            rank.close()
    return out


def ranks_of(found: Path, name: str) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """(What it said, what it sends) of every rank."""
    said = [
        json.loads((found / f"{name}.{rank}.json").read_text())
        for rank in range(layouts.CASES[name].ranks)
    ]
    errors = [s["error"] for s in said if "error" in s]
    assert not errors, "\n".join(errors)[-4000:]
    return [(s, load_file(found / f"{name}.{r}.safetensors")) for r, s in enumerate(said)]


def test_one_process_sends_the_checkpoint_that_it_has_loaded(
    single: dict[str, dict[str, torch.Tensor]], models: Path
) -> None:
    for model, sent in single.items():
        stored = cases.stored(models / model)
        assert sent.keys() == stored.keys()
        assert all(torch.equal(sent[name], stored[name]) for name in stored)


@pytest.mark.parametrize("name", sent_ranks.NAMES)
def test_a_layout_sends_what_one_process_sends(
    single: dict[str, dict[str, torch.Tensor]], found: Path, name: str
) -> None:
    want = single[layouts.CASES[name].model]
    ranks = ranks_of(found, name)
    names = [n for _, sent in ranks for n in sent]
    assert sorted(names) == sorted(want), "every name once"
    for said, sent in ranks:
        assert sent.keys() <= set(said["held"]), "nothing of another stage or shard"
        for n, tensor in sent.items():
            assert tensor.dtype == want[n].dtype and torch.equal(tensor, want[n]), n


SENDERS = {  # layout -> ranks that send
    **{"tp2-pp2": [0, 2], "pp2-ep2": [0, 1, 2, 3], "pp2": [0, 1], "pp2-vpp2": [0, 1]},
    **{"dp2": [0], "cp2": [0], "ep2": [0, 1], "tp2-sp-ep2": [0, 1], "tp2-sp-etp1": [0]},
    **{"etp2": [0], "cp2-ep2": [0, 1]},
}


@pytest.mark.parametrize("name", sent_ranks.NAMES)
def test_every_stage_and_every_shard_of_experts_has_a_sender(found: Path, name: str) -> None:
    ranks = ranks_of(found, name)
    assert [r for r, (_, sent) in enumerate(ranks) if sent] == SENDERS[name]
    if name == "pp2":  # tied: the last stage holds it too
        (first, sent_by_first), (last, sent_by_last) = ranks
        embedding = "model.embed_tokens.weight"
        assert embedding in first["held"] and embedding in last["held"]
        assert embedding in sent_by_first and embedding not in sent_by_last


@pytest.mark.parametrize("name", sent_ranks.NAMES)
def test_by_disk_each_sender_writes_its_own_files(
    single: dict[str, dict[str, torch.Tensor]], found: Path, models: Path, name: str
) -> None:
    model = layouts.CASES[name].model
    ranks, written = ranks_of(found, name), found / name
    files = sorted(file.name for file in written.glob("*.safetensors"))
    assert len(files) == len(SENDERS[name])
    for file, sender in zip(files, SENDERS[name], strict=True):
        assert set(load_file(written / file)) == set(ranks[sender][1])
    folder = HfFolder(written)  # by the index, where there are several
    assert folder.names == single[model].keys()
    assert all(torch.equal(folder[n], tensor) for n, tensor in single[model].items())
    assert (written / "config.json").is_file() and not (found / f"{name}.part").exists()


@pytest.mark.parametrize("name", sent_ranks.NAMES)
def test_no_rank_holds_more_than_its_copy_and_two_buckets(found: Path, name: str) -> None:
    """By the sender's own count, and by all memory that operations made meanwhile."""
    for said, sent in ranks_of(found, name):
        own = sum(t.nbytes for t in sent.values())
        assert said["copied_counted"] <= own + 2 * sent_ranks.MAX_BYTES
        assert said["copied_alive"] <= own + 2 * sent_ranks.MAX_BYTES
        assert said["streamed_counted"] <= 2 * sent_ranks.MAX_BYTES
        assert said["streamed_alive"] <= 2 * sent_ranks.MAX_BYTES
        assert said["streamed_sum"] == said["copied_sum"]
        if own:
            assert said["copied_counted"] > own
        if own and name in ("pp2", "pp2-vpp2"):
            assert own > 2 * sent_ranks.MAX_BYTES, "else what is streamed might be all of it"
