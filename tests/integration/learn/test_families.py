"""Every architecture: Hugging Face -> Megatron -> Hugging Face to the bit, logits as transformers
has them, a step of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import AlgorithmConfig
from pipeline.core.errors import CheckpointError
from tests.conftest import ROOT
from tests.integration.learn import learner_cases as cases
from tests.integration.learn.family_cases import FAMILIES, VARIANTS, make_family
from tests.integration.learn.processes import run_ranks
from tests.integration.learn.test_learner_step import logits_of

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
    rank, model = (
        start_rank(cases.settings(folders[name], use_tis=True)),
        cases.load_hf(folders[name]),
    )
    try:
        before, want = cases.weights_of(rank), checkpoint(folders[name])
        assert before.keys() == want.keys()
        assert all(torch.equal(before[n], want[n]) for n in want)
        for sample, got in zip(samples, logits_of(rank, samples), strict=True):
            with torch.no_grad():
                expected = model(torch.from_numpy(sample.tokens[:-1])[None]).logits[
                    0, -sample.response_length :
                ]
            assert (got - expected).abs().max() < 1e-4
        metrics = cases.step(rank, cases.make_batch(cases.make_step(samples, micro_batches=2)))
        after = cases.weights_of(rank)
    finally:
        rank.close()
    old = [cases.token_log_probs(model, s, 1.0).detach() for s in samples]
    loss = cases.reference_loss(model, samples, old, AlgorithmConfig(use_tis=True))
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(
        sum(g.square().sum() for g in grads).sqrt().item(), rel=1e-4
    )
    # an expert may go unchosen
    frozen = {n for n in before if torch.equal(before[n], after[n]) and ".mlp.experts." not in n}
    # --moe-router-bias-update-rate is 0
    assert all(n.endswith("e_score_correction_bias") for n in frozen), frozen


@pytest.fixture(scope="module")
def found_by_two_ranks(root: Path, folders: dict[str, Path]) -> dict[str, list[str]]:
    """Layout and family -> tensors that did not come back as they went in, from two processes that
    split them."""
    run_ranks(2, "family_ranks", root)
    one, other = (json.loads((root / f"found.{r}.json").read_text()) for r in range(2))
    assert one.keys() == other.keys()
    return {case: [*one[case], *other[case]] for case in one}


def test_split_weights_come_back_whole(found_by_two_ranks: dict[str, list[str]]) -> None:
    """Split over tensor, pipeline, expert and expert-tensor ranks."""
    assert len(found_by_two_ranks) == 4 * 2 + 6 * 5
    assert {case: wrong[:3] for case, wrong in found_by_two_ranks.items() if wrong} == {}


def test_presets_make_megatron_configurations(folders: dict[str, Path], tmp_path: Path) -> None:
    """Megatron takes the flags together, and what they leave open reaches it."""
    from configs.command_line.loader import parse_config
    from pipeline.wiring.foreign_flags import FAMILIES as FLAG_FAMILIES
    from stages.learn.megatron import start_rank
    from tests.unit.model_configs import PUBLISHED

    rank = start_rank(cases.settings(folders["qwen2"]))  # for its process groups
    from stages.learn.megatron.arguments import model_fields
    from stages.learn.megatron.bridge import make_bridge

    try:
        for name, published in PUBLISHED.items():
            flags = parse_config(
                ["--config", f"{ROOT}/configs/models/{name}.yaml", "--moe-aux-loss-coeff", "0.5"],
                FLAG_FAMILIES,
            )[0]
            # which transformers does not know
            own = {"kimi-k2": {"model_type": "kimi_k2"}}.get(name, {})
            (tmp_path / "config.json").write_text(json.dumps({**published.config, **own}))
            config = make_bridge(tmp_path, torch.bfloat16, model_fields(flags.megatron)).config
            assert config.moe_aux_loss_coeff == 0.5
            assert config.hidden_size == flags.megatron["hidden_size"]
            assert config.num_moe_experts == flags.megatron.get("num_experts")
            assert config.layernorm_epsilon == published.config["rms_norm_eps"]
            if name == "kimi-k2":
                assert (
                    config.beta_fast,
                    config.rotary_scaling_factor,
                    config.rope_type,
                    config.rotary_base,
                ) == (1, 32, "yarn", 50000)
    finally:
        rank.close()


def test_float8_checkpoints_are_read_in_blocks(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from stages.learn.hf_folder import HfFolder, main_dtype

    torch.manual_seed(0)
    wanted = torch.randn(200, 300)
    scale = torch.empty(2, 3)
    stored = torch.empty(200, 300, dtype=torch.float8_e4m3fn)
    for i in range(2):
        for j in range(3):
            block = slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1))
            scale[i, j] = wanted[block].abs().max() / 448
            stored[block] = (wanted[block] / scale[i, j]).to(torch.float8_e4m3fn)
    save_file({"w": stored, "w_scale_inv": scale, "plain": wanted}, tmp_path / "model.safetensors")
    folder = HfFolder(tmp_path)
    assert folder["w"].dtype is torch.bfloat16
    assert ((folder["w"] - wanted).abs() <= wanted.abs() / 14 + 0.02).all()
    assert torch.equal(folder["plain"], wanted)
    assert (
        folder.names == {"w", "plain"} and main_dtype({"w": folder.headers["w"]}) is torch.bfloat16
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "gpt2"}, r"model_type 'gpt2' is not supported; expected one of llama"),
        ({"norm_topk_prob": False}, "a deepseek_v3 with norm_topk_prob false is not supported"),
        ({"num_experts_per_tok": 3}, "num_experts_per_tok other than 2"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
    ],
)
def test_variants_that_cannot_be_expressed_are_refused(
    folders: dict[str, Path], tmp_path: Path, change: Any, says: str
) -> None:
    from stages.learn.megatron import start_rank

    config = json.loads((folders["deepseek_v3"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=says):
        start_rank(cases.settings(tmp_path))


def test_missing_and_misshapen_tensors_are_listed(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from stages.learn.megatron import start_rank

    tensors = checkpoint(folders["deepseek_v3"])
    expert = "model.layers.1.mlp.experts.5.down_proj.weight"
    (tmp_path / "config.json").write_text((folders["deepseek_v3"] / "config.json").read_text())
    tensors[expert] = tensors[expert][:-1].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"1 of another shape: {expert} is \[63, 32\], expected \[64, 32\]"
    ):
        start_rank(cases.settings(tmp_path))
    del tensors[expert], tensors["model.layers.1.mlp.gate.e_score_correction_bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"2 missing: .*{expert}"):
        start_rank(cases.settings(tmp_path))


def test_expert_biases_stay_float32(folders: dict[str, Path]) -> None:
    """In a bfloat16 model too: rounded, they would choose other experts than the engine's."""
    from stages.learn.megatron import start_rank

    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    stored = checkpoint(folders["glm4_moe"])[name]
    rank = start_rank(cases.settings(folders["glm4_moe"], dtype="bfloat16"))
    try:
        assert torch.equal(cases.weights_of(rank)[name], stored)
        cases.step(rank, cases.make_batch(cases.make_step(cases.make_samples(cases.LENGTHS))))
        assert torch.equal(cases.weights_of(rank)[name], stored)
    finally:
        rank.close()
    assert not torch.equal(stored, stored.bfloat16().float())
